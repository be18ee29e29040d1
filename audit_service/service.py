"""``AuditMixin`` adds the audit to a BentoML service; ``InfluenceEngine`` is the service that explains.

An audited service (any with the mixin) predicts and records its predictions; it holds neither the model in torch nor
the index. The engine holds both (``engine_service``).
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from collections.abc import Awaitable, Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import bentoml
from pydantic import BaseModel, ValidationError
from starlette.responses import JSONResponse, Response

from audit_service.bentoml_internals import api_functions
from audit_service.config.service_config import ConfigReference, check_together
from audit_service.engine.client import NO_ENGINE, Engine, EngineDependency
from audit_service.engine_service import EngineHere, InfluenceEngine, hold
from audit_service.errors import BadRequestError, JobNotFoundError, ServiceError, body_of, service_error
from audit_service.jobs.service import JobService
from audit_service.monitoring.snapshot import snapshot
from audit_service.schemas import (
    MAX_BATCH,
    DriftRequest,
    ExplainRequest,
    ExplainResponse,
    FeedbackRequest,
    IndexRequest,
    JobReference,
    JobRequest,
    ThumbnailRequest,
)
from audit_service.serving.audit import Audit
from audit_service.serving.audited_method import AuditedMethod
from audit_service.serving.audits import Asked, Audits, first_of
from audit_service.serving.error_responses import answering_errors, validation_body
from audit_service.serving.middleware import MiddlewareMixin
from audit_service.serving.request_context import request_to
from audit_service.store.predictions import PredictionRecord
from influence_engine.errors import InfluenceError, SettingsError

__all__ = ["AuditMixin", "InfluenceEngine"]

logger = logging.getLogger(__name__)


class AuditMixin(MiddlewareMixin):
    """Adds the endpoints ``/audit/...`` to a BentoML service: explanations, jobs, drift, feedback, what is loaded.

    ::

        @bentoml.service
        class Classifier(AuditMixin, config="sentiment"):
            @bentoml.api
            @audited(label="label", confidence="confidence")
            async def predict(self, request: TextInput, /) -> Prediction: ...

    ``config`` names a file in ``configs/``; left out, the environment variable ``BENTO_AUDIT_CONFIG`` names one. A
    file that this variable names takes the place of the one with the same name. A service with several models names
    the config of each at its method: ``@audited(config="topics")``.
    """

    audit_engine: Engine
    _audit_config = ConfigReference(None)
    _audit_configs: ClassVar[tuple[ConfigReference, ...]] = ()
    _audit_lock: ClassVar = threading.RLock()

    def __init_subclass__(cls, *, config: str | None = None, **options: Any) -> None:
        super().__init_subclass__(**options)
        file = getattr(sys.modules[cls.__module__], "__file__", None)
        near = Path(file).resolve() if file else None
        own = ConfigReference(config or cls._audit_config.name, near)
        methods = cls._audited_methods()
        others = [name for name in dict.fromkeys(method.config for method in methods) if name not in (None, own.name)]
        needed = own.name is not None or any(method.config is None for method in methods) or not others
        cls._audit_config = own
        cls._audit_configs = (*([own] if needed else []), *(ConfigReference(name, near) for name in others))
        hold(f"{cls.__module__}.{cls.__qualname__}", cls._audit_configs)
        cls.audit_engine = EngineDependency(
            InfluenceEngine,
            find_url=cls._engine_url,
            in_process=EngineHere,
        )
        for method in methods:
            method.check()

    @cached_property
    def audits(self) -> Mapping[str, Audit]:
        """Config, predictor and recorded predictions of each of this service's models, by its config's name."""
        keys = {reference.key: reference.read() for reference in self._audit_configs}
        return {key: Audit(type(self).__name__, key, config) for key, config in keys.items()}

    @property
    def audit(self) -> Audit:
        """The audit by the service's own config.

        Raises:
            SettingsError: each of its methods names another.
        """
        if self._audit_config not in self._audit_configs:
            raise SettingsError(
                "this service has no config of its own; each of its models has an audit: self.audits['NAME']",
                field="config",
            )
        return self.audits[self._audit_config.key]

    @cached_property
    def _audits(self) -> Audits:
        on = {key: audit for key, audit in self.audits.items() if audit.config.enabled}
        own = self._audit_config.key if self._audit_config in self._audit_configs else None
        return Audits(on, own, [key for key in self.audits if key not in on])

    @cached_property
    def _jobs(self) -> dict[str, JobService]:
        return {key: JobService(audit) for key, audit in self._audits.members.items()}

    @cached_property
    def _recording(self) -> dict[str | None, Audit]:
        """The audits that record, by what ``@audited`` calls their configs; none where all is switched off.

        Where BentoML runs several services in one process it starts only the first one, so the others start here.
        """
        if not self.is_switched_on():
            return {}
        self.start_audit()
        called = {reference.name: reference.key for reference in self._audit_configs}
        if self._audit_config in self._audit_configs:
            called[None] = self._audit_config.key
        return {name: self._audits.members[key] for name, key in called.items() if key in self._audits.members}

    def audit_of(self, config: str | None) -> Audit | None:
        """The audit that records a method, by the config that ``@audited`` names; ``None`` where it is switched off."""
        return self._recording.get(config)

    @classmethod
    def is_switched_on(cls) -> bool:
        """Whether any model of this service is audited: ``AUDIT_ENABLED``, and the key ``enabled`` of its config.

        Raises:
            SettingsError: a config cannot be used.
        """
        return any(reference.is_enabled() for reference in cls._audit_configs)

    @classmethod
    def max_body_bytes(cls, audited: AuditedMethod | None = None) -> int:
        """``serve.max_body_bytes`` of the method's config; of several, the largest for the plugin's own endpoints."""
        named = [one for one in cls._audit_configs if audited is not None and one.name == audited.config]
        if audited is not None and not named:
            named = [cls._audit_config]
        return max(reference.read().serve.max_body_bytes for reference in named or cls._audit_configs)

    @classmethod
    def public_sites(cls) -> tuple[list[str], list[str]]:
        """``serve.hosts`` and ``serve.origins`` of all its configs."""
        serve = [reference.read().serve for reference in cls._audit_configs]
        return [host for one in serve for host in one.hosts], [origin for one in serve for origin in one.origins]

    @classmethod
    def _engine_url(cls) -> str | None:
        # BentoML asks for it before it starts any process: a config that cannot be read, or an audited method whose
        # inputs cannot be found, ends `bentoml serve` with the reason instead of workers that are started in vain.
        if not cls.is_switched_on():
            return NO_ENGINE
        configs = {reference.name: reference.read() for reference in cls._audit_configs}
        keys = {reference.name: reference.key for reference in cls._audit_configs}
        on = {name: config for name, config in configs.items() if config.enabled}
        check_together({keys[name]: config for name, config in on.items()})
        for method in cls._audited_methods():
            config = on.get(method.config if method.config is not None else cls._audit_config.name)
            if config is not None:
                method.paths(config.input_names())
        return next(iter(on.values())).serve.engine_url

    @classmethod
    def _audited_methods(cls) -> list[AuditedMethod]:
        return [function.audited_method for function in api_functions(cls) if hasattr(function, "audited_method")]

    @bentoml.on_startup
    def start_audit(self) -> None:
        """Opens the store of predictions, begins to count, and goes on with jobs that an earlier server left."""
        with self._audit_lock:
            if vars(self).get("_audit_started"):
                return
            if not self.is_switched_on():
                logger.warning("%s is not audited: AUDIT_ENABLED or its config switches that off", type(self).__name__)
                return
            for audit in self._audits.members.values():
                audit.start(lambda: self.audit_engine)
            for jobs in self._jobs.values():
                jobs.start()
            vars(self)["_audit_started"] = True

    @bentoml.on_shutdown
    def stop_audit(self) -> None:
        """Writes what has not been written yet, and ends the process that works on jobs."""
        if vars(self).get("_audit_started"):
            for jobs in self._jobs.values():
                jobs.close()
            for audit in self._audits.members.values():
                audit.close()

    @bentoml.api(route="/audit/explain")
    @answering_errors
    async def audit_explain(self, request: ExplainRequest, /) -> ExplainResponse:
        """Which training examples, and which changes to the base model, made this prediction?"""
        if request.tier == "measured":
            self._refuse_job_as_explanation()
            return self._answer(await self._measured(request), 202)
        (answer,) = await self._audits.explain(self.audit_engine, [request])
        status = answer.pop("status", 200)
        return self._answer(answer, status, None if status >= 400 else ExplainResponse)

    @bentoml.api(route="/audit/explain_batch")
    @answering_errors
    async def audit_explain_batch(self, requests: list[dict[str, Any]], /) -> list[dict[str, Any]]:
        """The same for a list; each item of the answer is an explanation or an ``error`` of its own."""
        if not 1 <= len(requests) <= MAX_BATCH:
            raise BadRequestError(f"a batch holds 1 to {MAX_BATCH} requests, this one {len(requests)}")
        answers: list[Any] = [_parsed(request) for request in requests]
        measured = [answer for answer in answers if _is_measured(answer)]
        jobs = zip(measured, await self._audits.about(measured), strict=True)
        answers = [await self._job_of(*next(jobs)) if _is_measured(answer) else answer for answer in answers]
        good = [answer for answer in answers if isinstance(answer, ExplainRequest)]
        explained = iter(await self._audits.explain(self.audit_engine, good) if good else [])
        answers = [next(explained) if isinstance(answer, ExplainRequest) else answer for answer in answers]
        for answer in answers:
            answer.pop("status", None)
        return self._answer(answers, 200)

    @bentoml.api(route="/audit/jobs/submit")
    @answering_errors
    async def audit_jobs_submit(self, request: JobRequest, /) -> dict[str, Any]:
        """Trains again without, or with other, training examples, in the background; equal questions are one job."""
        jobs, record = await self._jobs_about(request)
        await self._check_selected(jobs.audit.name, request)
        return self._answer(await jobs.submit(request, record), 202)

    @bentoml.api(route="/audit/jobs/status")
    @answering_errors
    async def audit_jobs_status(self, request: JobReference, /) -> dict[str, Any]:
        """Where a job stands, and how long it will still take."""
        return self._answer(await self._job(lambda jobs: jobs.status(request)), 200)

    @bentoml.api(route="/audit/jobs/get")
    @answering_errors
    async def audit_jobs_get(self, request: JobReference, /) -> dict[str, Any]:
        """The result of a job that is done."""
        return self._answer(await self._job(lambda jobs: jobs.get(request)), 200)

    @bentoml.api(route="/audit/jobs/cancel")
    @answering_errors
    async def audit_jobs_cancel(self, request: JobReference, /) -> dict[str, Any]:
        """Cancels a job that waits or runs."""
        return self._answer(await self._job(lambda jobs: jobs.cancel(request)), 200)

    @bentoml.api(route="/audit/feedback")
    @answering_errors
    async def audit_feedback(self, request: FeedbackRequest, /) -> dict[str, Any]:
        """Takes true labels that have arrived; each item has its own fate, or its own error."""
        return self._answer(await self._audits.take_feedback(request), 200)

    @bentoml.api(route="/audit/drift")
    @answering_errors
    async def audit_drift(self, request: DriftRequest, /) -> dict[str, Any]:
        """What has moved since this replica's start, signal by signal."""
        monitor = self._audits.chosen(request.config).monitor
        return self._answer(await asyncio.to_thread(snapshot, monitor.model, monitor.baseline, monitor.reason), 200)

    @bentoml.api(route="/audit/thumbnail")
    @answering_errors
    async def audit_thumbnail(self, request: ThumbnailRequest, /) -> Any:
        """A training example as the model reads it: a PNG or JPEG file, which no one on the way may keep."""
        name = self._audits.chosen(request.config).name
        content, kind = await self.audit_engine.thumbnail(name, request.example_handle)
        headers = {"cache-control": "no-store", "x-content-type-options": "nosniff"}
        return Response(content, media_type=kind, headers=headers)

    @bentoml.api(route="/audit/index")
    @answering_errors
    async def audit_index(self, request: IndexRequest, /) -> dict[str, Any]:
        """What the engine has loaded, or why it has not; and in ``record`` whether predictions are put on record."""
        audit = self._audits.chosen(request.config)
        status = await self.audit_engine.status(audit.name)
        return {**status, "record": audit.store.state()}

    async def _check_selected(self, name: str, request: JobRequest) -> None:
        """Refuses at once what the job would find out after loading a model."""
        handles = None if request.edit is None else [request.edit.example]
        chosen = request.without or request.relabel
        try:
            if handles is not None:
                await self.audit_engine.selected(name, None, handles)
            elif chosen is not None and chosen.top_k is None:
                await self.audit_engine.selected(name, chosen.group, chosen.examples)
        except ServiceError as error:
            if error.status < 500:
                raise
            # The engine is down or loading: the job finds out.

    async def _jobs_about(self, request: ExplainRequest | JobRequest) -> tuple[JobService, PredictionRecord | None]:
        (asked,) = await self._audits.about([request])
        return self._jobs_of(asked)

    def _jobs_of(self, asked: Asked | InfluenceError) -> tuple[JobService, PredictionRecord | None]:
        if isinstance(asked, InfluenceError):
            raise asked
        if isinstance(asked.record, InfluenceError):
            raise asked.record
        return self._jobs[asked.audit.name], asked.record

    async def _measured(self, request: ExplainRequest) -> dict[str, Any]:
        jobs, record = await self._jobs_about(request)
        return await jobs.explain(request, record)

    async def _job(self, ask: Callable[[JobService], Awaitable[dict[str, Any]]]) -> dict[str, Any]:
        return await first_of(list(self._jobs.values()), ask, JobNotFoundError)

    async def _job_of(self, request: ExplainRequest, asked: Asked | InfluenceError) -> dict[str, Any]:
        try:
            jobs, record = self._jobs_of(asked)
            return await jobs.explain(request, record)
        except InfluenceError as error:
            return body_of(error)

    def _refuse_job_as_explanation(self) -> None:
        context = request_to(self)
        if context is not None and context.pickled:  # the caller waits for an explanation, and can read nothing else
            raise BadRequestError("a measured explanation is a job: ask audit_jobs_submit", field="tier")

    def _answer(self, body: Any, status: int, shape: type[BaseModel] | None = None) -> Any:
        """A response as it is: the body has been validated, and what was left out stays out, where BentoML would send
        nulls. Another service that asks gets a value, which BentoML carries to it.
        """
        context = request_to(self)
        if context is None and status >= 400:
            raise service_error(body["error"], status)
        if status < 400 and (context is None or context.pickled):
            return body if shape is None else shape.model_validate(body)
        return JSONResponse(body, status_code=status)


def _is_measured(answer: Any) -> bool:
    return isinstance(answer, ExplainRequest) and answer.tier == "measured"


def _parsed(request: Mapping[str, Any]) -> ExplainRequest | dict[str, Any]:
    try:
        return ExplainRequest.model_validate(request)
    except ValidationError as error:
        details: Any = error.errors(include_input=False, include_context=False, include_url=False)
        return validation_body(details, ExplainRequest)
