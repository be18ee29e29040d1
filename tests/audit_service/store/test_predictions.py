"""The record: shared by workers, encrypted, and never a reason for a prediction to fail."""

from __future__ import annotations

import math
import os
import signal
import stat
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import BaseModel
from sqlalchemy import event

from audit_service.errors import (
    IdempotencyConflictError,
    InputErasedError,
    InputNotKeptError,
    PredictionNotFoundError,
    ServiceError,
)
from audit_service.store.database import Database
from audit_service.store.ids import derived_id, id_age_s, new_id
from audit_service.store.location import StateLocation
from audit_service.store.predictions import PURGE_EVERY_S, PredictionRecord, PredictionStore
from audit_service.store.tables import PREDICTIONS, predictions
from audit_service.store.write_behind import MAX_PENDING


def prediction(prediction_id: str | None = None, **changes: Any) -> PredictionRecord:
    values: dict[str, Any] = {
        "prediction_id": prediction_id or new_id(),
        "service": "Test",
        "model_digest": "d",
        "label": "positive",
        "confidence": 0.75,
        "scores": {"positive": 0.75, "negative": 0.25},
        "input": {"text": "a secret text"},
    }
    return PredictionRecord(**{**values, **changes})


def test_stores_are_imported_without_torch() -> None:
    source = (
        "import sys, audit_service.jobs.store, audit_service.store.outcomes, audit_service.store.predictions\n"
        "assert not {'torch', 'transformers', 'bentoml'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", source], check=False).returncode == 0


Drops = Counter[str]


@pytest.fixture
def drops() -> Drops:
    return Counter()


@pytest.fixture
def store(place: StateLocation, drops: Drops) -> Iterator[PredictionStore]:
    store = PredictionStore(place, dropped=lambda reason, count: drops.update({reason: count}))
    store.start()
    yield store
    store.close()


def test_a_prediction_is_found_at_once_and_by_another_worker(store: PredictionStore, place: StateLocation) -> None:
    record = prediction()
    store.record(record)
    assert store.get(record.prediction_id) == record
    assert store.known([record.prediction_id, "x"]) == {record.prediction_id}
    store.flush()
    assert store.known([record.prediction_id, "x"]) == {record.prediction_id}
    other = PredictionStore(place)
    assert other.get(record.prediction_id) == record


def test_what_was_recorded_before_closing_is_there_after_opening(place: StateLocation) -> None:
    records = [prediction(input={"text": f"text {n}"}) for n in range(500)]
    first = PredictionStore(place)
    first.start()
    for record in records:
        first.record(record)
    first.close()
    again = PredictionStore(place)
    assert [again.get(record.prediction_id) for record in records] == records


def test_a_record_wakes_a_writer_that_is_idle(store: PredictionStore) -> None:
    for _ in range(2):  # else it would come an hour later, with the purge
        store.record(prediction())
        assert store.flush(PURGE_EVERY_S / 10)


def test_recording_only_queues_and_touches_neither_disk_nor_database(place: StateLocation) -> None:
    store = PredictionStore(place)  # nobody writes what it queues
    records = [prediction() for _ in range(200)]
    for record in records:
        store.record(record)
    assert not place.folder.exists()
    assert [store.get(record.prediction_id) for record in records] == records
    assert not place.folder.exists()


def test_workers_that_write_at_once_lose_nothing(place: StateLocation) -> None:
    stores = [PredictionStore(place) for _ in range(4)]
    for store in stores:
        store.start()

    def write(store: PredictionStore) -> list[str]:
        records = [prediction() for _ in range(200)]
        for record in records:
            store.record(record)
        return [record.prediction_id for record in records]

    with ThreadPoolExecutor(4) as pool:
        ids = [one for found in pool.map(write, stores) for one in found]
    for store in stores:
        store.close()
    reader = PredictionStore(place)
    assert all(reader.get(one).prediction_id == one for one in ids)


def test_what_was_flushed_survives_a_kill(place: StateLocation) -> None:
    writer = f"""
import itertools
from audit_service.store.location import StateLocation
from audit_service.store.predictions import PURGE_EVERY_S, PredictionRecord, PredictionStore
from pathlib import Path
place = StateLocation(Path({str(place.folder)!r}), url={place.url!r}, namespace={place.namespace!r})
store = PredictionStore(place)
store.start()
for n in itertools.count():
    store.record(PredictionRecord(f"id-{{n}}", "T", "d", "positive", 0.5, None, {{"text": "x"}}))
    if n % 50 == 49:
        assert store.flush()
        print(n, flush=True)
"""
    process = subprocess.Popen([sys.executable, "-c", writer], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    flushed = 0
    for line in process.stdout:
        flushed = int(line)
        if flushed > 300:
            break
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    store = PredictionStore(place)
    assert all(store.get(f"id-{n}").label == "positive" for n in range(flushed + 1))


def test_nothing_of_the_store_holds_the_input(store: PredictionStore, place: StateLocation) -> None:
    store.record(prediction())
    store.flush()
    for file in place.folder.iterdir():
        assert b"secret text" not in file.read_bytes()
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(place.folder.stat().st_mode) == 0o700
    with Database(place, PREDICTIONS).reading("") as connection:
        (row,) = connection.execute(predictions.select())
    assert row.input
    assert b"secret text" not in repr(row).encode()


def test_workers_that_start_together_agree_on_one_key(place: StateLocation) -> None:
    stores = [PredictionStore(place) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        ids = {
            one.prediction_id for one in pool.map(lambda store: store.reserve("key", "scope", {"text": "x"}), stores)
        }
    assert len(ids) == 1
    assert [file.name for file in place.folder.iterdir() if "key" in file.name] == ["predictions.key"]


def test_an_input_cannot_be_read_with_another_key_or_under_another_id(
    store: PredictionStore, place: StateLocation
) -> None:
    one, other = prediction(), prediction()
    for record in (one, other):
        store.record(record)
    store.flush()
    with Database(place, PREDICTIONS).writing("") as connection:
        (stolen,) = connection.scalars(
            predictions.select()
            .with_only_columns(predictions.c.input)
            .where(predictions.c.prediction_id == one.prediction_id)
        )
        connection.execute(
            predictions.update().where(predictions.c.prediction_id == other.prediction_id).values(input=stolen)
        )
    with pytest.raises(ServiceError, match="cannot be decrypted"):
        PredictionStore(place).get(other.prediction_id)
    assert PredictionStore(place).get(one.prediction_id) == one
    (place.folder / "predictions.key").unlink()
    with pytest.raises(ServiceError, match="cannot be decrypted"):
        PredictionStore(place).get(one.prediction_id)


def looked_for(store: PredictionStore) -> list[str]:
    """The predictions that are looked for in a store's database from now on, each by its statement."""
    found: list[str] = []
    engine = store._database._engines().reading
    event.listen(engine, "after_cursor_execute", lambda *done: "prediction_id =" in done[2] and found.append(done[2]))
    return found


def test_an_id_that_is_not_there_is_looked_for_once(place: StateLocation) -> None:
    store = PredictionStore(place)
    store.start()
    asked = looked_for(store)
    for unknown in ("", "x", "no-such-id", derived_id(b"0" * 32), "\0", "\ud800"):
        asked.clear()
        with pytest.raises(PredictionNotFoundError, match="X-Prediction-Id"):
            store.get(unknown)
        assert len(asked) <= 1
    store.close()


def test_erased_and_outdated_inputs_are_gone_and_say_so(store: PredictionStore) -> None:
    erased, old, fresh = prediction(), prediction(time=time.time() - 31 * 86400), prediction()
    for record in (erased, old, fresh):
        store.record(record)
    store.flush()
    store.erase(erased.prediction_id)
    store.purge()
    assert store.purge() == 0, "nothing is left to erase"
    for record in (erased, old):
        found = store.get(record.prediction_id)
        assert found.label == "positive"
        with pytest.raises(InputErasedError, match="has been erased"):
            found.kept_input()
    assert store.get(fresh.prediction_id).kept_input() == {"text": "a secret text"}
    with pytest.raises(PredictionNotFoundError):
        store.erase("no-such-id")
    with pytest.raises(PredictionNotFoundError):
        store.erase("\0")


def test_a_store_that_keeps_no_inputs_says_so(place: StateLocation) -> None:
    store = PredictionStore(place, keep_inputs_s=0)
    store.start()
    record = prediction()
    store.record(record)
    with pytest.raises(InputNotKeptError, match="send it as input"):
        store.get(record.prediction_id).kept_input()
    store.close()
    with pytest.raises(InputNotKeptError, match="send it as input"):
        PredictionStore(place).get(record.prediction_id).kept_input()


def test_a_key_belongs_to_one_input(store: PredictionStore) -> None:
    first = store.reserve("key", "scope", {"text": "x"})
    assert store.reserve("key", "scope", {"text": "x"}) == first
    assert store.reserve("key", "other scope", {"text": "y"}) != first
    with pytest.raises(IdempotencyConflictError, match="use a new key"):
        store.reserve("key", "scope", {"text": "y"})


def test_a_retry_is_known_once_the_first_answer_was_recorded(store: PredictionStore) -> None:
    first = store.reserve("key", "scope", {"text": "x"})
    assert not first.repeated
    assert not store.reserve("key", "scope", {"text": "x"}).repeated  # the first one was never answered
    store.record(prediction(prediction_id=first.prediction_id))
    assert store.reserve("key", "scope", {"text": "x"}).repeated
    assert store.flush()
    assert store.reserve("key", "scope", {"text": "x"}) == (first.prediction_id, True)


class Model(BaseModel):
    text: str


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (np.array([[1.0, 2.0]]), [[1.0, 2.0]]),
        (np.float32(0.5), 0.5),
        (Model(text="x"), {"text": "x"}),
        (("a", 1, None, True), ["a", 1, None, True]),
        ("\ud800", "\ud800"),
        ("\x00", "\x00"),
    ],
)
def test_inputs_are_kept_as_json_values(store: PredictionStore, value: Any, kept: Any) -> None:
    record = prediction(input={"value": value})
    store.record(record)
    store.flush()
    assert store.get(record.prediction_id).kept_input() == {"value": kept}


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_left_out_while_it_waits_and_when_it_is_written(
    store: PredictionStore, odd: float
) -> None:
    record = prediction(confidence=odd, scores={"a": odd, "b": 0.5})
    store.record(record)
    waiting = store.get(record.prediction_id)
    assert store.flush()
    written = store.get(record.prediction_id)
    assert waiting.confidence is written.confidence is None
    assert waiting.scores == written.scores == {"a": None, "b": 0.5}


def test_a_record_that_cannot_be_encoded_does_not_hold_up_the_others(store: PredictionStore, drops: Drops) -> None:
    bad = [prediction(input={"value": object()}), prediction(input={"value": float("nan")}), prediction(confidence="x")]
    bad += [prediction(label="\0"), prediction(label="\ud800")]
    good = prediction()
    for record in (*bad, good):
        store.record(record)
    assert store.flush()
    assert store.get(good.prediction_id) == good
    assert drops == {"not_encodable": 5}


def test_a_store_that_cannot_be_opened_waits_drops_and_counts(tmp_path: Path, drops: Drops) -> None:
    place = tmp_path / "state"
    place.write_text("a file where the folder should be")
    store = PredictionStore(place, dropped=lambda reason, count: drops.update({reason: count}))
    store.start()
    records = [prediction() for _ in range(MAX_PENDING + 5)]
    for record in records:
        store.record(record)
    assert drops == {"store_unavailable": 5}
    assert store.reserve("key", "scope", {"text": "x"}) != store.reserve("key", "scope", {"text": "x"})
    place.unlink()  # the store is back: what waited is written
    assert store.flush(20.0)
    store.close()
    assert PredictionStore(place).get(records[-6].prediction_id) == records[-6]


def test_ids_are_unique_and_carry_their_time() -> None:
    began = time.time()
    ids = [new_id() for _ in range(5000)]
    assert len(set(ids)) == len(ids)
    assert [one[:13] for one in ids] == sorted(one[:13] for one in ids)
    age = id_age_s(ids[-1])
    assert age is not None
    assert 0 <= age <= time.time() - began + 0.001  # they count milliseconds
    assert id_age_s(derived_id(b"0" * 32)) is None
    assert id_age_s("x") is None
