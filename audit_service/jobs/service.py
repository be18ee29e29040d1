"""Jobs as an audited service sees them: submits, asks, cancels, and keeps a worker process running."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from typing import Any, Protocol

from audit_service.artifacts.bento_models import find
from audit_service.artifacts.recorded_runs import replayable_run
from audit_service.artifacts.state_places import state_location
from audit_service.config import AuditConfig
from audit_service.errors import JobNotDoneError, ServiceError
from audit_service.jobs.store import ENDED, Job, JobStore
from audit_service.monitoring.metrics import model_label
from audit_service.monitoring.model_metrics import JobMetrics
from audit_service.prediction.inputs import check_length
from audit_service.schemas import ExplainRequest, JobAnswer, JobReference, JobRequest, JobStatus, Selection
from audit_service.store.predictions import PredictionRecord
from audit_service.workflows.counterfactual import Question
from influence_engine.errors import InfluenceError, InputError, TierUnavailableError
from influence_engine.index import current_version
from influence_engine.names import listing
from influence_engine.tasks import Target as TargetName
from influence_engine.tasks import input_fields, without_references

WATCH_S = 2.0
LOG = "jobs.log"

logger = logging.getLogger(__name__)


class Auditing(Protocol):
    """What is needed of a service's audit."""

    config: AuditConfig
    name: str
    model_digest: str


class JobService:
    """The jobs of one service.

    Args:
        audit: Its config and its predictions on record.
    """

    def __init__(self, audit: Auditing) -> None:
        self.audit = audit
        self.store = JobStore(state_location(audit.config), waiting=audit.config.jobs.waiting)
        self.folder = self.store.folder
        self._process: subprocess.Popen[bytes] | None = None
        self._wake = threading.Event()
        self._closed = False

    def start(self) -> None:
        """Begins to watch the queue: what an earlier server left unfinished is gone on with."""
        self._metrics = JobMetrics(model_label(self.audit.config.name, self.audit.model_digest))
        # Where the queue cannot be read just now, the job has one attempt less.
        with contextlib.suppress(ServiceError, OSError):
            self.store.forgive()
        threading.Thread(target=self._watch, name="jobs", daemon=True).start()

    def close(self) -> None:
        """Ends the process that works, if this one started it."""
        self._closed = True
        self._wake.set()
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()

    async def submit(self, request: JobRequest, record: PredictionRecord | None = None) -> dict[str, Any]:
        """Queues a job, or finds the one with the same content.

        Args:
            request: What is asked.
            record: The prediction on record that it names.

        Raises:
            TierUnavailableError: nothing can be measured here; the message says why.
            QueueFullError: too many wait.
            ServiceError: the prediction's input is not kept, or the job cannot be.
        """
        return await asyncio.to_thread(self._submit, request, record)

    async def explain(self, request: ExplainRequest, record: PredictionRecord | None = None) -> dict[str, Any]:
        """An explanation of the measured tier: the job that trains without its strongest examples."""
        selection = Selection(top_k=request.top_k, polarity=request.polarity)
        given = request.model_dump(include={"prediction_id", "input", "target"}, exclude_none=True)
        return await self.submit(JobRequest.model_validate({**given, "without": selection}), record)

    async def status(self, request: JobReference) -> dict[str, Any]:
        """Where a job stands; raises ``JobNotFoundError``."""
        return described(await asyncio.to_thread(self.store.get, request.job_id))

    async def get(self, request: JobReference) -> dict[str, Any]:
        """A job's result.

        Raises:
            JobNotFoundError: there is none of this id.
            JobNotDoneError: it has no result.
        """
        job = await asyncio.to_thread(self.store.get, request.job_id)
        if job.state != "done":
            why = "" if job.error is None else f": {job.error['message']}"
            hint = "" if job.state in ENDED else "; /audit/jobs/status says how far it is"
            raise JobNotDoneError(f"the job is {job.state}{why}{hint}", field="job_id")
        answer = JobAnswer.model_validate({"job_id": job.job_id, "state": job.state, "result": job.result})
        return answer.model_dump(mode="json")

    async def cancel(self, request: JobReference) -> dict[str, Any]:
        """Cancels a job; one that has ended stays as it is. Raises ``JobNotFoundError``."""
        return described(await asyncio.to_thread(self.store.cancel, request.job_id))

    def _submit(self, request: JobRequest, record: PredictionRecord | None) -> dict[str, Any]:
        self._check_record()
        index = current_version(find(self.audit.config, "index").folder)
        target: TargetName | None = None if request.target is None else request.target.named()
        given = request.input
        if record is not None:
            record.check_model(self.audit.model_digest)
            given = record.kept_input()
            if target is None and record.label in self.audit.config.label_names():
                target = record.label
        self._check_input(given or {}, request)
        question = Question(
            input=given or {},
            target=target,
            without=request.without,
            relabel=request.relabel,
            edit=request.edit,
            replay=request.replay,
        )
        job = self.store.submit({**question.content(), "model": self.audit.model_digest, "index": index})
        self._wake.set()
        return described(job)

    def _check_input(self, given: Mapping[str, Any], request: JobRequest) -> None:
        """Refuses at once what the job would refuse after loading a model; it checks the rest."""
        config = self.audit.config
        known, labels = config.input_names(), config.label_names()
        for name in given:
            if known is not None and name not in known:
                raise InputError(f"input has no field {name!r}; its fields are {listing(known)}", field=f"input.{name}")
        for wanted in input_fields(config.example_fields()):
            if wanted.readable and not str(given.get(wanted.name) or "").strip():
                raise InputError(f"{wanted.name!r} must be a text of a word at least", field=f"input.{wanted.name}")
        sent = {f"input.{name}": value for name, value in without_references(config.example_fields(), given).items()}
        if request.edit is not None:
            sent["edit.text"] = request.edit.text
        if request.relabel is not None:
            sent["relabel.label"] = request.relabel.label
        for place, value in sent.items():
            check_length(place, value, config.serve.max_text_chars, field=place)
        named = {
            "target.label": None if request.target is None else request.target.label,
            "relabel.label": None if request.relabel is None else request.relabel.label,
        }
        for field, label in named.items():
            if label is not None and labels and label not in labels:
                raise InputError(f"unknown label {label!r}; the labels are {listing(labels)}", field=field)

    def _check_record(self) -> None:
        """Training again takes the record and the training data; a service may well be without."""
        config = self.audit.config
        try:
            run, _ = replayable_run(config, verify=False)
        except InfluenceError as error:
            raise TierUnavailableError(
                f"nothing can be measured here, for lack of a recorded run: {error.message}", field="tier"
            ) from None
        if not run.replayable:
            raise TierUnavailableError(
                f"nothing can be measured: the recorded steps cannot be executed again: {run.why_not_replayable}",
                field="tier",
            )

    def _watch(self) -> None:
        while not self._closed:
            try:
                states = self.store.counts()
                self._metrics.show(states)
                if states.get("done"):
                    for result in self.store.take_uncounted_results():
                        self._metrics.measured(result)
                if states.get("queued") or states.get("running"):
                    self._see_to_a_worker()
            except Exception:  # the queue cannot be read just now, or no process started: later it may
                logger.exception("the jobs in %s wait", self.folder)
            self._wake.wait(WATCH_S)
            self._wake.clear()

    def _see_to_a_worker(self) -> None:
        if self._process is not None and self._process.poll() is None:
            return
        if self.store.is_worked_on():
            return  # another worker of the service has started one
        config = self.audit.config
        assert config.file is not None  # it has been read from one
        environment = {**os.environ, "OMP_NUM_THREADS": str(config.jobs.threads), "TOKENIZERS_PARALLELISM": "false"}
        environment.pop("PROMETHEUS_MULTIPROC_DIR", None)
        with (self.folder / LOG).open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "audit_service.jobs.worker", str(config.file)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )


def described(job: Job) -> dict[str, Any]:
    """A job as the API shows it."""
    names = ("job_id", "state", "waiting_before", "created", "started", "ended", "attempts", "cancelling", "progress")
    status = JobStatus.model_validate({**{name: getattr(job, name) for name in names}, "error": job.error})
    return status.model_dump(mode="json", exclude_none=True)
