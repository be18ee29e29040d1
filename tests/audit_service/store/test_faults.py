"""Faults of the database: each says what is wrong and what to do, and nothing that was acknowledged is lost."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest

from audit_service.errors import StoreUnavailableError
from audit_service.jobs.store import JobStore
from audit_service.store.database import Database
from audit_service.store.ids import new_id
from audit_service.store.location import StateLocation
from audit_service.store.outcomes import Outcome, OutcomeStore
from audit_service.store.predictions import PredictionRecord, PredictionStore
from audit_service.store.tables import JOBS, PREDICTIONS
from influence_engine.errors import SettingsError
from tests.postgres import PASSWORD, PostgresServer

LOCKED = "another process holds its lock; try again later"


def prediction(prediction_id: str | None = None) -> PredictionRecord:
    return PredictionRecord(prediction_id or new_id(), "T", "m", "positive", 0.5, None, {"text": "x" * 500})


def impatient(place: StateLocation, store: Any) -> None:
    """Lets a store wait for a tenth of a second only: what is waited for here never comes."""
    database = store._database
    database.schema = replace(database.schema, timeout_s=0.1)
    if place.url is not None:
        location = replace(place, url=f"{place.url}?options=-c%20lock_timeout%3D100ms")
        database.location = location


@contextmanager
def locked_by_another(place: StateLocation, file: str, table: str) -> Iterator[None]:
    """Another program has the whole table for itself."""
    if place.url is None:
        other = sqlite3.connect(place.folder / file, isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        yield
        other.close()
    else:
        address = place.url.replace("+psycopg", "")
        with psycopg.connect(address) as connection:
            connection.execute(f'LOCK TABLE "{place.namespace}".{table} IN ACCESS EXCLUSIVE MODE')
            yield


def test_a_lock_that_another_process_holds_is_named_and_may_be_tried_again(place: StateLocation) -> None:
    Database(place, PREDICTIONS).open()
    Database(place, JOBS).open()
    predictions, outcomes, jobs = PredictionStore(place), OutcomeStore(place), JobStore(place)
    for store in (predictions, outcomes, jobs):
        impatient(place, store)
    with locked_by_another(place, "predictions.sqlite", "predictions"):
        with pytest.raises(StoreUnavailableError, match=f"the predictions on record cannot be read: {LOCKED}") as error:
            predictions.get("x")
        assert (error.value.status, error.value.retry_after) == (503, 5)
        with pytest.raises(StoreUnavailableError, match=f"the true labels could not be kept: {LOCKED}"):
            outcomes.add([Outcome("x", "positive", {})])
        with pytest.raises(StoreUnavailableError, match=LOCKED):
            predictions.purge()
    with locked_by_another(place, "jobs.sqlite", "jobs"), pytest.raises(StoreUnavailableError, match=LOCKED):
        jobs.submit({"number": 1})

    assert jobs.submit({"number": 1}).state == "queued"
    assert outcomes.add([Outcome("x", "positive", {})])[0].fate == "unknown"


def test_a_prediction_with_a_key_goes_out_while_another_process_holds_the_lock(place: StateLocation) -> None:
    store = PredictionStore(place)
    impatient(place, store)
    known = store.reserve("key", "scope", {"text": "x"})
    with locked_by_another(place, "predictions.sqlite", "reservations"):
        assert store.reserve("key", "scope", {"text": "x"}).repeated is False
    assert store.reserve("key", "scope", {"text": "x"}) == known


def test_a_server_that_crashed_and_is_back_has_all_that_was_acknowledged(
    postgres: PostgresServer, server_place: StateLocation
) -> None:
    drops: Counter[str] = Counter()
    delays: list[int] = []
    store = PredictionStore(
        server_place,
        dropped=lambda reason, count: drops.update({reason: count}),
        delayed=lambda: delays.append(1),
    )
    jobs = JobStore(server_place)
    store.start()
    acknowledged = [prediction() for _ in range(100)]
    for record in acknowledged:
        store.record(record)
    assert store.flush()
    assert store.state() == {"waiting": 0, "reason": None}
    job = jobs.submit({"number": 1})

    postgres.kill()
    try:
        meanwhile = [prediction() for _ in range(100)]
        for record in meanwhile:
            store.record(record)
        assert store.get(meanwhile[0].prediction_id) == meanwhile[0], "what waits is found"
        assert not store.reserve("key", "scope", {"text": "x"}).repeated
        while not delays:
            time.sleep(0.01)
        assert store.state()["waiting"] == 100
        assert "the database server does not answer" in store.state()["reason"]
        with pytest.raises(StoreUnavailableError, match="the database server does not answer as it should") as error:
            store.get(acknowledged[0].prediction_id)
        assert "127.0.0.1" not in error.value.message
        with pytest.raises(StoreUnavailableError, match="the jobs cannot be read or written"):
            jobs.submit({"number": 2})
    finally:
        postgres.start()

    assert store.flush(20.0), "the writer goes on by itself"
    reader = PredictionStore(server_place)
    assert [reader.get(one.prediction_id) for one in (*acknowledged, *meanwhile)] == [*acknowledged, *meanwhile]
    assert jobs.get(job.job_id) == job
    assert not drops
    assert store.state() == {"waiting": 0, "reason": None}
    store.close()


def test_a_store_that_starts_before_its_server_waits_for_it(
    postgres: PostgresServer, server_place: StateLocation
) -> None:
    store = PredictionStore(server_place)
    postgres.kill()
    try:
        store.start()
        record = prediction()
        store.record(record)
    finally:
        postgres.start()

    assert store.flush(20.0)
    store.close()
    assert PredictionStore(server_place).get(record.prediction_id) == record


def test_what_was_flushed_or_acknowledged_survives_a_kill_in_the_middle_of_writing(place: StateLocation) -> None:
    program = f"""
import itertools, sys
from pathlib import Path
from audit_service.jobs.store import JobStore
from audit_service.store.location import StateLocation
from audit_service.store.predictions import PredictionRecord, PredictionStore
place = StateLocation(Path({str(place.folder)!r}), url={place.url!r}, namespace={place.namespace!r})
store, jobs = PredictionStore(place), JobStore(place, waiting=10000)
store.start()
for number in itertools.count():
    jobs.submit({{"number": number}})
    print("job", number, flush=True)
    for part in range(200):
        given = {{"text": "x" * 500}}
        store.record(PredictionRecord(f"id-{{number}}-{{part}}", "T", "d", "positive", 0.5, None, given))
    if number % 5 == 0:
        assert store.flush()
        print("flushed", number, flush=True)
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    last: dict[str, int] = {}
    for line in process.stdout:
        kind, number = line.split()
        last[kind] = int(number)
        if last.get("flushed", 0) >= 10 and last["job"] >= 13:
            break
    os.kill(process.pid, signal.SIGKILL)
    process.wait()

    store, jobs = PredictionStore(place), JobStore(place)
    assert jobs.counts()["queued"] >= last["job"] + 1
    for number in range(last["flushed"] + 1):
        for part in range(0, 200, 20):
            assert store.get(f"id-{number}-{part}").kept_input() == {"text": "x" * 500}
    jobs.take_uncounted_results()  # whatever the killed process held is free


def test_a_full_disk_is_named_and_what_waited_is_written_when_there_is_room(
    tmp_path: Path, files_up_to: Callable[[int], AbstractContextManager[None]]
) -> None:
    drops: Counter[str] = Counter()
    store = PredictionStore(tmp_path, dropped=lambda reason, count: drops.update({reason: count}))
    jobs = JobStore(tmp_path)
    store.start()
    first = prediction()
    store.record(first)
    assert store.flush()
    jobs.submit({"number": 0})
    size = max(file.stat().st_size for file in tmp_path.iterdir())

    with files_up_to(size):
        waiting = [prediction() for _ in range(200)]
        for record in waiting:
            store.record(record)
        with pytest.raises(StoreUnavailableError, match=r"the jobs cannot be read or written: (database or )?disk"):
            jobs.submit({"number": 1, "text": "x" * 50_000})
        assert store.get(first.prediction_id) == first
        assert not store.flush(0.5)

    assert store.flush(20.0)
    store.close()
    reader = PredictionStore(tmp_path)
    assert [reader.get(one.prediction_id) for one in (first, *waiting)] == [first, *waiting]
    assert not drops
    assert jobs.submit({"number": 99, "text": "x" * 5000}).state == "queued"


def test_a_file_that_was_removed_under_a_running_store_is_made_anew(tmp_path: Path) -> None:
    place = tmp_path / "state"
    store, jobs = PredictionStore(place), JobStore(place)
    store.reserve("key", "scope", {"text": "x"})
    jobs.submit({"number": 1})
    for file in place.glob("*.sqlite*"):
        file.unlink()

    record = prediction()
    store.start()
    store.record(record)
    assert store.flush()
    store.close()
    assert jobs.counts() == {}
    assert PredictionStore(place).get(record.prediction_id) == record


def test_a_broken_file_is_an_error_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "predictions.sqlite").write_bytes(b"no database at all" * 1000)

    with pytest.raises(StoreUnavailableError, match="cannot be read: file is not a database"):
        PredictionStore(tmp_path).get("x")


def test_many_threads_share_few_connections_to_the_server(
    postgres: PostgresServer, server_place: StateLocation
) -> None:
    store = PredictionStore(server_place)
    store.start()
    records = [prediction() for _ in range(60)]
    for record in records:
        store.record(record)
    assert store.flush()
    found: list[PredictionRecord] = []
    threads = [
        threading.Thread(target=lambda one=record: found.append(store.get(one.prediction_id)))  # type: ignore[misc]
        for record in records
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store.close()

    assert len(found) == len(records)
    with psycopg.connect(postgres.url().replace("+psycopg", "")) as connection:
        (count,) = connection.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'bento-audit'"
        ).fetchone() or (0,)
    assert count <= 15


WRONG = {
    "password": ("@127.0.0.1", "#@127.0.0.1"),
    "host": ("@127.0.0.1:", "@127.0.0.2:"),
    "database": ("/postgres", "/nowhere"),
    "option": ("/postgres", "/postgres?colour=red"),
    "port": ("@127.0.0.1:", "@127.0.0.1:p"),
    "driver": ("postgresql+psycopg", "mysql+nodriver"),
    "address": ("://", ":"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_the_password_is_in_no_message_and_no_log(
    postgres: PostgresServer, server_place: StateLocation, caplog: pytest.LogCaptureFixture, wrong: str
) -> None:
    caplog.set_level(logging.DEBUG)
    place = replace(server_place, url=postgres.url().replace(*WRONG[wrong]))
    assert place.url != postgres.url()
    jobs = JobStore(place)

    with pytest.raises((StoreUnavailableError, SettingsError)) as error:
        jobs.counts()

    # The first line of the cause is for the log; tracebacks show every cause.
    shown = "".join(traceback.format_exception(error.value)) + caplog.text + repr(place) + repr(error.value)
    assert PASSWORD not in shown
    assert place.url.partition("audit:")[2].partition("@")[0] not in shown


def test_neither_statements_nor_their_values_are_in_messages_and_logs(
    place: StateLocation, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    Database(place, PREDICTIONS).open()
    store = OutcomeStore(place)
    impatient(place, store)
    private = [secrets.token_hex(8) for _ in range(4)]
    with (
        locked_by_another(place, "predictions.sqlite", "predictions"),
        pytest.raises(StoreUnavailableError) as error,
    ):
        store.add([Outcome(private[0], private[1], {private[2]: private[3]})])

    shown = "".join(traceback.format_exception(error.value)) + caplog.text
    assert not [one for one in private if one in shown]
