"""The process that works on the jobs of one service: ``python -m audit_service.jobs.worker CONFIG``.

One a state folder, or a schema of a database server, whoever starts it: it holds a lock, and a second one ends at
once. It runs at the lowest priority, takes one job after the other, and ends when there is nothing to do or when
whoever started it has ended (its standard input closes); what is unfinished then is gone on with by the next one.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
from typing import Any

import torch

from audit_service.artifacts.state_places import state_location
from audit_service.config import AuditConfig, load_config
from audit_service.jobs.store import Job, JobStore
from audit_service.workflows.counterfactual import Measuring, Question, seconds_left
from audit_service.workflows.processes.priority import lowest_priority
from audit_service.workspace import Workspace
from influence_engine.errors import InfluenceError

IDLE_S = 20.0
"""How long it waits for another job before it ends and gives its memory back."""

REPORTED_EVERY_S = 0.5

logger = logging.getLogger(__name__)


class JobCancelledError(Exception):
    """Raised in the middle of a job that is to stop."""


class Worker:
    """Works on the jobs of one config.

    Args:
        config: The config.
        store: Its jobs.
    """

    def __init__(self, config: AuditConfig, store: JobStore) -> None:
        self.config, self.store = config, store
        self._measuring: Measuring | None = None

    def work(self, idle_s: float) -> None:
        """Takes jobs until there has been none for ``idle_s``."""
        until = time.monotonic() + idle_s
        while time.monotonic() < until:
            begun = self.store.begin()
            if begun is None:
                time.sleep(0.2)
                continue
            self.run(*begun)
            until = time.monotonic() + idle_s

    def run(self, job: Job, content: dict[str, Any]) -> None:
        """Works on one job to its end."""
        reported = _StoredProgress(self.store, job.job_id)
        try:
            if self._measuring is None:
                self._measuring = Measuring(Workspace(self.config, reported))
            answer = self._measuring.answer(Question.of(content), reported)
        except JobCancelledError:
            self.store.end(job.job_id, "cancelled")
        except InfluenceError as error:
            self._measuring = None  # what it says may be mended meanwhile
            self.store.end(job.job_id, "failed", error={"code": error.code, "message": error.message})
        except Exception as error:
            logger.exception("job %s failed", job.job_id)
            self._measuring = None
            message = f"{type(error).__name__}; the log of the jobs in the state folder says more"
            self.store.end(job.job_id, "failed", error={"code": "internal_error", "message": message})
        else:
            self.store.end(job.job_id, "done", result=answer.model_dump(mode="json"))


class _StoredProgress:
    """Progress that goes into the store now and then, and brings back whether to stop."""

    def __init__(self, store: JobStore, job_id: str) -> None:
        self._store, self._job_id = store, job_id
        self._next = 0.0

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + REPORTED_EVERY_S
        progress = {"stage": stage, "done": done, "total": total, "seconds_left": seconds_left(note)}
        if self._store.report_progress(self._job_id, progress):
            raise JobCancelledError


def end_with_the_starter(store: JobStore) -> None:
    """Ends this process when its standard input closes: when the process that holds the other end has ended."""

    def watch() -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 4096):
                pass
        with contextlib.suppress(InfluenceError):
            store.give_back()
        os._exit(0)  # whatever is unfinished is on disk

    threading.Thread(target=watch, name="starter", daemon=True).start()


def main(arguments: list[str]) -> int:
    """Works for the config that the arguments name."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    lowest_priority()
    config = load_config(arguments[0])
    torch.set_num_threads(config.jobs.threads)
    store = JobStore(state_location(config), waiting=config.jobs.waiting)
    with store.working() as alone:
        if alone:
            end_with_the_starter(store)
            Worker(config, store).work(IDLE_S)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
