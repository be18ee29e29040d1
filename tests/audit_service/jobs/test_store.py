"""Promises: equal content is one job; states only go forward; nothing is lost, done twice, or kept for too long."""

from __future__ import annotations

import multiprocessing
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, precondition, rule

from audit_service.errors import JobNotFoundError, QueueFullError
from audit_service.jobs.store import ENDED, MOST_ATTEMPTS, JobStore

CONTENT = {"input": {"text": "a secret diary"}, "without": {"top_k": 10}}


def submit_in_process(folder: Path, answers: Any) -> None:
    answers.put(JobStore(folder).submit(CONTENT).job_id)


def test_the_same_content_is_one_job_whoever_submits_it(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    others = [context.Process(target=submit_in_process, args=(tmp_path, answers)) for _ in range(3)]
    for other in others:
        other.start()
    ids = {answers.get(timeout=30) for _ in others}
    for other in others:
        other.join(10)
    assert ids == {JobStore(tmp_path).submit(dict(reversed(CONTENT.items()))).job_id}
    assert JobStore(tmp_path).counts() == {"queued": 1}
    assert JobStore(tmp_path).submit({**CONTENT, "without": {"top_k": 9}}).waiting_before == 1


def test_what_a_job_is_about_is_sealed_and_erased_when_it_has_ended(tmp_path: Path) -> None:
    store = JobStore(tmp_path)
    store.submit(CONTENT)
    assert b"secret diary" not in (tmp_path / "jobs.sqlite").read_bytes()
    begun = store.begin()
    assert begun is not None
    job, content = begun
    assert content == CONTENT
    store.end(job.job_id, "done", result={"answer": 42})
    assert store.get(job.job_id).result == {"answer": 42}
    assert store.submit(CONTENT).state == "done", "what is done is not done again"
    assert store.uncounted() == [{"answer": 42}]
    assert store.uncounted() == []


def test_another_store_in_the_same_folder_goes_on_with_a_job_whose_process_ended(tmp_path: Path) -> None:
    JobStore(tmp_path).submit(CONTENT)
    second = JobStore(tmp_path).submit({"other": 1})
    ids = []
    for attempt in range(1, MOST_ATTEMPTS + 1):
        begun = JobStore(tmp_path).begin()  # and the process ends
        assert begun is not None
        ids.append(begun[0].job_id)
        assert (begun[0].state, begun[0].attempts) == ("running", attempt)
    assert len(set(ids)) == 1, "it comes before what waits"
    begun = JobStore(tmp_path).begin()
    assert begun is not None
    assert begun[0].job_id == second.job_id
    failed = JobStore(tmp_path).get(ids[0])
    assert failed.state == "failed"
    assert failed.error is not None
    assert failed.error["code"] == "job_process_ended"
    again = JobStore(tmp_path).submit(CONTENT)
    assert (again.job_id, again.state, again.attempts, again.error) == (ids[0], "queued", 0, None)


def test_an_attempt_that_ended_with_the_server_is_not_held_against_the_job(tmp_path: Path) -> None:
    store = JobStore(tmp_path)
    job_id = store.submit(CONTENT).job_id
    for _ in range(MOST_ATTEMPTS + 2):
        assert store.begin() is not None
        store.forgive()
    assert store.get(job_id).state == "running"


def test_a_waiting_job_is_cancelled_at_once_and_a_running_one_at_its_next_step(tmp_path: Path) -> None:
    store = JobStore(tmp_path)
    waiting = store.submit({"number": 1})
    assert store.cancel(waiting.job_id).state == "cancelled"
    running = store.submit({"number": 2})
    store.begin()
    assert store.told(running.job_id, {"stage": "x", "done": 1, "total": 2}) is False
    assert store.get(running.job_id).progress == {"stage": "x", "done": 1, "total": 2}
    cancelled = store.cancel(running.job_id)
    assert (cancelled.state, cancelled.cancelling) == ("running", True)
    assert store.told(running.job_id, {}) is True
    assert store.begin() is None, "a cancelled job is not gone on with"
    assert store.get(running.job_id).state == "cancelled"
    assert store.cancel(running.job_id).state == "cancelled"


def test_the_queue_has_an_end_and_an_unknown_id_is_an_error(tmp_path: Path) -> None:
    store = JobStore(tmp_path, waiting=2)
    first = store.submit({"number": 1})
    store.submit({"number": 2})
    with pytest.raises(QueueFullError, match="2 jobs wait already"):
        store.submit({"number": 3})
    assert store.submit({"number": 1}).job_id == first.job_id, "one that waits is found, not refused"
    for ask in (store.get, store.cancel):
        with pytest.raises(JobNotFoundError, match="no job has the id 'nobody'"):
            ask("nobody")


class Queue(RuleBasedStateMachine):
    """Whatever is submitted, cancelled, begun and ended in whatever order."""

    ids = Bundle("ids")
    folder: Callable[[], Path]

    def __init__(self) -> None:
        super().__init__()
        self.store = JobStore(type(self).folder(), waiting=3)
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


def test_states_only_go_forward_whatever_happens(tmp_path_factory: pytest.TempPathFactory) -> None:
    Queue.folder = staticmethod(lambda: tmp_path_factory.mktemp("queue"))
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(Queue, settings=settings(max_examples=12, stateful_step_count=20, deadline=None))
