"""Predictions are found whichever worker made them, and whoever waits for one keeps nobody else waiting."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from audit_service.errors import ModelChangedError, PredictionNotFoundError
from audit_service.serving.lookup import look_up
from audit_service.store.ids import derived_id, new_id
from audit_service.store.predictions import PredictionRecord, PredictionStore

FOR_EVER = 1e6


@dataclass
class Owner:
    store: PredictionStore


@pytest.fixture
def owners(tmp_path: Path) -> Iterator[list[Owner]]:
    """Two services' stores, opened."""
    stores = [PredictionStore(tmp_path / name) for name in ("one", "two")]
    for store in stores:
        store.start()
    yield [Owner(store) for store in stores]
    for store in stores:
        store.close()


def record() -> PredictionRecord:
    return PredictionRecord(new_id(), "films", "a" * 64, "good", 0.9, None, {"text": "fine"})


def test_each_is_found_in_the_store_that_has_it(owners: list[Owner]) -> None:
    first, second = record(), record()
    owners[0].store.record(first)
    owners[1].store.record(second)
    found = asyncio.run(look_up(owners, [second.prediction_id, first.prediction_id]))
    assert found == {
        first.prediction_id: (owners[0], first),
        second.prediction_id: (owners[1], second),
    }


def test_what_nobody_can_be_writing_is_not_waited_for(owners: list[Owner]) -> None:
    unknown = ["", "x", derived_id(b"0" * 32), "\0", "\ud800"]
    found = asyncio.run(look_up(owners, unknown, other_worker_s=FOR_EVER))
    assert set(found) == set(unknown)
    assert all(isinstance(one, PredictionNotFoundError) for one in found.values())


def test_a_fresh_one_is_waited_for_as_another_worker_may_be_writing_it(owners: list[Owner], tmp_path: Path) -> None:
    late, there = record(), record()
    owners[0].store.record(there)
    other_worker = PredictionStore(tmp_path / "two")
    other_worker.start()

    async def ask() -> None:
        asked = asyncio.create_task(look_up(owners, [late.prediction_id, there.prediction_id], other_worker_s=FOR_EVER))
        await asyncio.sleep(0.1)
        assert not asked.done()
        other_worker.record(late)
        found = await asked
        assert found[late.prediction_id] == (owners[1], late)
        assert found[there.prediction_id] == (owners[0], there)

    asyncio.run(ask())
    other_worker.close()


def test_a_hundred_that_are_waited_for_wait_together_and_hold_no_thread(owners: list[Owner]) -> None:
    async def ask() -> None:
        waiting = [
            asyncio.create_task(look_up(owners, [new_id() for _ in range(100)], other_worker_s=FOR_EVER))
            for _ in range(20)
        ]
        await asyncio.sleep(0.2)
        for _ in range(5):  # the threads that everybody shares answer meanwhile
            await asyncio.to_thread(lambda: None)
        assert not any(one.done() for one in waiting)
        for one in waiting:
            one.cancel()

    asyncio.run(ask())


def test_no_other_model_speaks_for_a_prediction_on_record() -> None:
    made = record()
    made.check_model("a" * 64)
    made.check_model(None)
    with pytest.raises(ModelChangedError, match="was made by the model aaaaaaaaaaaa, and bbbbbbbbbbbb is served now"):
        made.check_model("b" * 64)
