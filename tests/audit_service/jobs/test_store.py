"""Promises: equal content is one job; states only go forward; nothing is lost, done twice, or kept for too long."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from audit_service.errors import JobNotFoundError, QueueFullError
from audit_service.jobs.store import ENDED, MOST_ATTEMPTS, JobStore
from audit_service.store.database import Database
from audit_service.store.location import StateLocation
from audit_service.store.tables import JOBS, jobs

CONTENT = {"input": {"text": "a secret diary"}, "without": {"top_k": 10}}


SUBMIT = """
import json, sys
from pathlib import Path
from audit_service.jobs.store import JobStore
from audit_service.store.location import StateLocation
folder, url, namespace, content = sys.argv[1:]
place = StateLocation(Path(folder), url=url or None, namespace=namespace or None)
print(JobStore(place).submit(json.loads(content)).job_id)
"""


def content_on_record(place: StateLocation) -> Any:
    with Database(place, JOBS).reading("") as connection:
        return connection.scalars(jobs.select().with_only_columns(jobs.c.content)).one()


def test_the_same_content_is_one_job_whoever_submits_it(place: StateLocation) -> None:
    given = (str(place.folder), place.url or "", place.namespace or "", json.dumps(CONTENT))
    others = [subprocess.Popen([sys.executable, "-c", SUBMIT, *given], stdout=subprocess.PIPE) for _ in range(3)]
    ids = {other.communicate(timeout=60)[0].decode().strip() for other in others}
    assert ids == {JobStore(place).submit(dict(reversed(CONTENT.items()))).job_id}
    assert JobStore(place).counts() == {"queued": 1}
    assert JobStore(place).submit({**CONTENT, "without": {"top_k": 9}}).waiting_before == 1


def test_what_a_job_is_about_is_encrypted_and_erased_when_it_has_ended(place: StateLocation) -> None:
    store = JobStore(place)
    store.submit(CONTENT)
    assert b"secret diary" not in content_on_record(place)
    if place.url is None:
        assert b"secret diary" not in (place.folder / "jobs.sqlite").read_bytes()
    begun = store.begin()
    assert begun is not None
    job, content = begun
    assert content == CONTENT
    store.end(job.job_id, "done", result={"answer": 42})
    assert content_on_record(place) is None
    assert store.get(job.job_id).result == {"answer": 42}
    assert store.submit(CONTENT).state == "done", "what is done is not done again"
    assert store.take_uncounted_results() == [{"answer": 42}]
    assert store.take_uncounted_results() == []


def test_another_store_in_the_same_folder_goes_on_with_a_job_whose_process_ended(place: StateLocation) -> None:
    JobStore(place).submit(CONTENT)
    second = JobStore(place).submit({"other": 1})
    ids = []
    for attempt in range(1, MOST_ATTEMPTS + 1):
        begun = JobStore(place).begin()  # and the process ends
        assert begun is not None
        ids.append(begun[0].job_id)
        assert (begun[0].state, begun[0].attempts) == ("running", attempt)
    assert len(set(ids)) == 1, "it comes before what waits"
    begun = JobStore(place).begin()
    assert begun is not None
    assert begun[0].job_id == second.job_id
    failed = JobStore(place).get(ids[0])
    assert failed.state == "failed"
    assert failed.error is not None
    assert failed.error["code"] == "job_process_ended"
    again = JobStore(place).submit(CONTENT)
    assert (again.job_id, again.state, again.attempts, again.error) == (ids[0], "queued", 0, None)


def test_an_attempt_that_ended_with_the_server_is_not_held_against_the_job(place: StateLocation) -> None:
    store = JobStore(place)
    job_id = store.submit(CONTENT).job_id
    for _ in range(MOST_ATTEMPTS + 2):
        assert store.begin() is not None
        store.give_back()
        assert store.get(job_id).state == "queued"
    for _ in range(MOST_ATTEMPTS + 2):
        assert store.begin() is not None  # and everything ends at once
        JobStore(place).forgive()
        assert (store.get(job_id).state, store.get(job_id).attempts) == ("running", 0)
    store.begin()
    with store.working() as alone:
        assert alone
        JobStore(place).forgive()
        assert store.get(job_id).attempts == 1, "it is worked on, by another server's process"


def test_a_waiting_job_is_cancelled_at_once_and_a_running_one_at_its_next_step(place: StateLocation) -> None:
    store = JobStore(place)
    waiting = store.submit({"number": 1})
    assert store.cancel(waiting.job_id).state == "cancelled"
    running = store.submit({"number": 2})
    store.begin()
    assert store.report_progress(running.job_id, {"stage": "x", "done": 1, "total": 2}) is False
    assert store.get(running.job_id).progress == {"stage": "x", "done": 1, "total": 2}
    cancelled = store.cancel(running.job_id)
    assert (cancelled.state, cancelled.cancelling) == ("running", True)
    assert store.report_progress(running.job_id, {}) is True
    assert store.begin() is None, "a cancelled job is not gone on with"
    assert store.get(running.job_id).state == "cancelled"
    assert store.cancel(running.job_id).state == "cancelled"


def test_the_queue_has_an_end_and_an_unknown_id_is_an_error(place: StateLocation) -> None:
    store = JobStore(place, waiting=2)
    first = store.submit({"number": 1})
    store.submit({"number": 2})
    with pytest.raises(QueueFullError, match="2 jobs wait already"):
        store.submit({"number": 3})
    assert store.submit({"number": 1}).job_id == first.job_id, "one that waits is found, not refused"
    for ask in (store.get, store.cancel):
        with pytest.raises(JobNotFoundError, match="no job has the id 'nobody'"):
            ask("nobody")
        with pytest.raises(JobNotFoundError):
            ask("\0")


class Queue(RuleBasedStateMachine):
    """Whatever is submitted, cancelled, begun and ended in whatever order."""

    ids = Bundle("ids")
    place: Callable[[], StateLocation]

    def __init__(self) -> None:
        super().__init__()
        self.store = JobStore(type(self).place(), waiting=3)
        self.states: dict[str, str] = {}

    @rule(target=ids, number=st.integers(0, 5))
    def submit(self, number: int) -> str:
        waiting = list(self.states.values()).count("queued")
        try:
            job = self.store.submit({"number": number})
        except QueueFullError:
            assert waiting == 3
            return next(iter(self.states))
        before = self.states.get(job.job_id)
        assert job.state == ("queued" if before in (None, "failed", "cancelled") else before)
        self.states[job.job_id] = job.state
        return job.job_id

    @rule(job_id=ids)
    def cancel(self, job_id: str) -> None:
        job = self.store.cancel(job_id)
        expected = "cancelled" if self.states[job_id] == "queued" else self.states[job_id]
        assert job.state == expected
        self.states[job_id] = expected

    @rule()
    def begin(self) -> None:
        begun = self.store.begin()
        for job_id, state in self.states.items():
            self.states[job_id] = self.store.get(job_id).state
            assert state == self.states[job_id] or state in ("queued", "running")
        if begun is None:
            assert not {"queued", "running"} & set(self.states.values())

    @precondition(lambda self: "running" in self.states.values())
    @rule(state=st.sampled_from(ENDED))
    def end(self, state: Any) -> None:
        job_id = next(one for one, found in self.states.items() if found == "running")
        self.store.end(job_id, state, result={} if state == "done" else None)
        self.states[job_id] = state

    @invariant()
    def one_runs_at_most_and_all_are_known(self) -> None:
        counts = self.store.counts()
        assert counts.get("running", 0) <= 1
        assert sum(counts.values()) == len(self.states)
        assert counts == dict(Counter(self.states.values()))


def test_states_only_go_forward_whatever_happens(place: StateLocation) -> None:
    numbers = itertools.count()

    def fresh() -> StateLocation:
        number = next(numbers)
        namespace = place.namespace and f"{place.namespace}_{number}"
        return replace(place, folder=place.folder / str(number), namespace=namespace)

    Queue.place = staticmethod(fresh)
    run_state_machine_as_test(Queue, settings=settings(max_examples=12, stateful_step_count=20, deadline=None))


def test_one_process_works_at_a_time(place: StateLocation) -> None:
    first, second = JobStore(place), JobStore(place)
    assert not first.is_worked_on()
    with first.working() as alone, second.working() as also:
        assert (alone, also) == (True, False)
        assert first.is_worked_on()
        assert second.is_worked_on()
    with second.working() as alone:
        assert alone


def test_an_error_of_the_work_is_not_taken_for_one_of_the_store(place: StateLocation) -> None:
    with pytest.raises(FileNotFoundError), JobStore(place).working():
        raise FileNotFoundError("the training data")
