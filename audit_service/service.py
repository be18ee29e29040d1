"""``AuditMixin`` adds the audit to a BentoML service; ``InfluenceEngine`` is the service that explains.

An audited service (any with the mixin) predicts and records its predictions; it holds neither the model in torch nor
the index. The engine holds both, once, in a process of its own that BentoML starts beside the service, or in another
pod (``serve.engine_url``). It may serve several services: each names its config.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import sys
from collections.abc import Callable, Coroutine, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, ParamSpec

import bentoml
from pydantic import ValidationError
from starlette.responses import JSONResponse

from audit_service.bentoml_internals import api_functions
from audit_service.config import AuditConfig
from audit_service.config.service_config import ConfigReference, listed_configs
from audit_service.engine.client import Engine, EngineDependency
from audit_service.engine.host import EngineHost
from audit_service.errors import BadRequestError, error_body
from audit_service.jobs.service import JobService
from audit_service.monitoring.snapshot import snapshot
from audit_service.schemas import (
    MAX_BATCH,
    DriftRequest,
    EngineRequest,
    ExplainRequest,
    ExplainResponse,
    FeedbackRequest,
    IndexRequest,
    JobReference,
    JobRequest,
    StatusRequest,
)
from audit_service.serving.audit import Audit
from audit_service.serving.audited_method import AuditedMethod
from audit_service.serving.error_responses import error_response, validation_body
from audit_service.serving.feedback import take_feedback
from audit_service.serving.middleware import MiddlewareMixin
from influence_engine.errors import InfluenceError, SettingsError

Arguments = ParamSpec("Arguments")

_configs: dict[str, ConfigReference] = {}
"""The config of every service class with the mixin: what an engine started beside them has to load."""


def answering_errors(
    method: Callable[Arguments, Coroutine[Any, Any, Any]],
) -> Callable[Arguments, Coroutine[Any, Any, Any]]:
    """Turns what a method raises on purpose into the response it means."""

    @functools.wraps(method)
    async def wrapper(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Any:
        try:
            return await method(*args, **kwargs)
        except InfluenceError as error:
            return error_response(error)

    return wrapper


async def _explain_directly(engine: InfluenceEngine, body: Any) -> Any:
    try:
        request = EngineRequest.model_validate(body)
    except ValidationError:
        return None  # BentoML finds the same, and shapes the error
    return await _explain(engine, request)


@answering_errors
async def _explain(engine: InfluenceEngine, request: EngineRequest) -> Any:
    return _response({"items": await engine.host.explain(request.config, request.items, request.deadline_s)}, 200)


@bentoml.service(name="influence_engine", workers=1, traffic={"timeout": 600})
class InfluenceEngine(MiddlewareMixin):
    """Explains predictions. Loads in the background, and never fails to start: it reports what is wrong.

    Alone, it is started by ``BENTO_AUDIT_CONFIG=sentiment bentoml serve audit_service.service:InfluenceEngine``, with
    several configs separated by commas.
    """

    direct: ClassVar = {"/explain": _explain_directly}

    def __init__(self) -> None:
        self.host = EngineHost(wanted_configs())

    @classmethod
    def max_body_bytes(cls) -> int:
        """The service that asks has its own limit; a batch holds many inputs."""
        return 64 * 1024 * 1024

    @bentoml.on_shutdown
    def stop(self) -> None:
        """Stops the engine's threads."""
        self.host.close()

    @bentoml.api(route="/explain")
    async def explain(self, request: EngineRequest, /) -> dict[str, Any]:
        """Explains items of one config; each has its answer or its own error."""
        answer: dict[str, Any] = await _explain(self, request)
        return answer

    @bentoml.api(route="/status")
    @answering_errors
    async def status(self, request: StatusRequest, /) -> dict[str, Any]:
        """What is loaded, of one config or of all."""
        if request.config is not None:
            return self.host.slot(request.config).status()
        return {name: slot.status() for name, slot in self.host.slots.items()}


def wanted_configs() -> dict[str, Callable[[], AuditConfig]]:
    """How to read each config that an engine in this process holds, by name: those of the services beside it, else
    those that ``BENTO_AUDIT_CONFIG`` lists. A class that names none is left out; it cannot be served either.
    """
    wanted = list(_configs.values()) or [ConfigReference(name) for name in listed_configs()]
    found: dict[str, Callable[[], AuditConfig]] = {}
    for baseline in wanted:
        try:
            found[baseline.key] = baseline.read
        except SettingsError as error:
            logging.getLogger(__name__).warning("a service will not be explained: %s", error.message)
    return found


class EngineHere:
    """The engine within this process, where BentoML runs everything in one (``bentoml serve --development``)."""

    def __init__(self, instance: Any) -> None:
        self.host: EngineHost = instance.host

    async def explain(self, config: str, items: Any, deadline_s: float) -> list[dict[str, Any]]:
        """An explanation or an error for each item; raises what ``EngineHost.explain`` raises."""
        return await self.host.explain(config, items, deadline_s)

    async def status(self, config: str) -> dict[str, Any]:
        """State and identity of what is loaded; ``ServiceError`` (404) for a config that is not held here."""
        return self.host.slot(config).status()

    def another(self) -> EngineHere:
        """Itself: any event loop may wait for its answers."""
        return self

    async def close(self) -> None:
        """Stops its threads."""
        self.host.close()


class AuditMixin(MiddlewareMixin):
    """Adds the endpoints ``/audit/...`` to a BentoML service: explanations, jobs, drift, feedback, what is loaded.

    ::

        @bentoml.service
        class Classifier(AuditMixin, config="sentiment"):
            @bentoml.api
            @audited(label="label", confidence="confidence")
            async def predict(self, request: TextInput, /) -> Prediction: ...

    ``config`` names a file in ``configs/``; left out, the environment variable ``BENTO_AUDIT_CONFIG`` names one. A
    file that this variable names takes the place of the one with the same name.
    """

    audit_engine: Engine
    _audit_config = ConfigReference(None)

    def __init_subclass__(cls, *, config: str | None = None, **options: Any) -> None:
        super().__init_subclass__(**options)
        file = getattr(sys.modules[cls.__module__], "__file__", None)
        cls._audit_config = ConfigReference(config or cls._audit_config.name, Path(file).resolve() if file else None)
        _configs[f"{cls.__module__}.{cls.__qualname__}"] = cls._audit_config
        cls.audit_engine = EngineDependency(
            InfluenceEngine,
            find_url=cls._engine_url,
            in_process=EngineHere,
        )
        for method in cls._audited_methods():
            method.check()

    @cached_property
    def audit(self) -> Audit:
        """Config, predictor and recorded predictions of this service."""
        return Audit(type(self).__name__, self._audit_config.key, self._audit_config.read())

    @cached_property
    def jobs(self) -> JobService:
        """Its background jobs."""
        return JobService(self.audit)

    @classmethod
    def max_body_bytes(cls) -> int:
        """``serve.max_body_bytes`` of the config."""
        return cls._audit_config.read().serve.max_body_bytes

    @classmethod
    def _engine_url(cls) -> str | None:
        # BentoML asks for it before it starts any process: a config that cannot be read, or an audited method whose
        # inputs cannot be found, ends `bentoml serve` with the reason instead of workers that are started in vain.
        config = cls._audit_config.read()
        for method in cls._audited_methods():
            method.paths(config.input_names())
        return config.serve.engine_url

    @classmethod
    def _audited_methods(cls) -> list[AuditedMethod]:
        return [function.audited_method for function in api_functions(cls) if hasattr(function, "audited_method")]

    @bentoml.on_startup
    def start_audit(self) -> None:
        """Opens the store of predictions, begins to count, and goes on with jobs that an earlier server left."""
        self.audit.start(lambda: self.audit_engine)
        self.jobs.start()

    @bentoml.on_shutdown
    def stop_audit(self) -> None:
        """Writes what has not been written yet, and ends the process that works on jobs."""
        self.jobs.close()
        self.audit.close()

    @bentoml.api(route="/audit/explain")
    @answering_errors
    async def audit_explain(self, request: ExplainRequest, /) -> ExplainResponse:
        """Which training examples, and which changes to the base model, made this prediction?"""
        if request.tier == "measured":
            return _response(await self.jobs.explain(request), 202)
        (answer,) = await self.audit.explain(self.audit_engine, [request])
        return _response(answer, answer.pop("status", 200))

    @bentoml.api(route="/audit/explain_batch")
    @answering_errors
    async def audit_explain_batch(self, requests: list[dict[str, Any]], /) -> list[dict[str, Any]]:
        """The same for a list; each item of the answer is an explanation or an ``error`` of its own."""
        if not 1 <= len(requests) <= MAX_BATCH:
            raise BadRequestError(f"a batch holds 1 to {MAX_BATCH} requests, this one {len(requests)}")
        answers: list[Any] = [_parsed(request) for request in requests]
        answers = [await self._job_of(answer) if _is_measured(answer) else answer for answer in answers]
        good = [answer for answer in answers if isinstance(answer, ExplainRequest)]
        explained = iter(await self.audit.explain(self.audit_engine, good) if good else [])
        answers = [next(explained) if isinstance(answer, ExplainRequest) else answer for answer in answers]
        for answer in answers:
            answer.pop("status", None)
        return _response(answers, 200)

    @bentoml.api(route="/audit/jobs/submit")
    @answering_errors
    async def audit_jobs_submit(self, request: JobRequest, /) -> dict[str, Any]:
        """Trains again without, or with other, training examples, in the background; equal questions are one job."""
        return _response(await self.jobs.submit(request), 202)

    @bentoml.api(route="/audit/jobs/status")
    @answering_errors
    async def audit_jobs_status(self, request: JobReference, /) -> dict[str, Any]:
        """Where a job stands, and how long it will still take."""
        return _response(await self.jobs.status(request), 200)

    @bentoml.api(route="/audit/jobs/get")
    @answering_errors
    async def audit_jobs_get(self, request: JobReference, /) -> dict[str, Any]:
        """The result of a job that is done."""
        return _response(await self.jobs.get(request), 200)

    @bentoml.api(route="/audit/jobs/cancel")
    @answering_errors
    async def audit_jobs_cancel(self, request: JobReference, /) -> dict[str, Any]:
        """Cancels a job that waits or runs."""
        return _response(await self.jobs.cancel(request), 200)

    @bentoml.api(route="/audit/feedback")
    @answering_errors
    async def audit_feedback(self, request: FeedbackRequest, /) -> dict[str, Any]:
        """Takes true labels that have arrived; each item has its own fate, or its own error."""
        return _response(await asyncio.to_thread(take_feedback, self.audit, request), 200)

    @bentoml.api(route="/audit/drift")
    @answering_errors
    async def audit_drift(self, request: DriftRequest, /) -> dict[str, Any]:
        """What has moved since this replica's start, signal by signal."""
        monitor = self.audit.monitor
        return _response(await asyncio.to_thread(snapshot, monitor.model, monitor.baseline, monitor.reason), 200)

    @bentoml.api(route="/audit/index")
    @answering_errors
    async def audit_index(self, request: IndexRequest, /) -> dict[str, Any]:
        """What the engine has loaded, or why it has not."""
        return await self.audit_engine.status(self.audit.name)

    async def _job_of(self, request: ExplainRequest) -> dict[str, Any]:
        try:
            return await self.jobs.explain(request)
        except InfluenceError as error:
            return error_body(error.code, error.message, error.field)


def _is_measured(answer: Any) -> bool:
    return isinstance(answer, ExplainRequest) and answer.tier == "measured"


def _parsed(request: Mapping[str, Any]) -> ExplainRequest | dict[str, Any]:
    try:
        return ExplainRequest.model_validate(request)
    except ValidationError as error:
        details: Any = error.errors(include_input=False, include_context=False, include_url=False)
        return validation_body(details, ExplainRequest.model_fields)


def _response(body: Any, status: int) -> Any:
    # As it is: it has been validated, and what was left out stays out, where BentoML would send nulls.
    return JSONResponse(body, status_code=status)
