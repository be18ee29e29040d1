"""True labels that arrive later: each has its fate, the last one counts, in bulk as one by one."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from audit_service.errors import ServiceError
from audit_service.store.ids import new_id
from audit_service.store.location import StateLocation
from audit_service.store.outcomes import Judged, Outcome, OutcomeStore
from audit_service.store.predictions import PredictionRecord, PredictionStore


@pytest.fixture
def ids(place: StateLocation) -> list[str]:
    """Ids of 1,200 predictions on record: every third one positive."""
    store = PredictionStore(place)
    store.start()
    made = [new_id() for _ in range(1200)]
    for number, one in enumerate(made):
        label = "positive" if number % 3 == 0 else "negative"
        store.record(PredictionRecord(one, "Test", "m", label, 0.8, None, {"text": str(number)}))
    store.close()
    return made


def test_true_labels_are_kept_in_bulk_and_found_with_what_was_predicted(place: StateLocation, ids: list[str]) -> None:
    store = OutcomeStore(place)

    judged = store.add([Outcome(one, "positive", {"region": "north"}) for one in ids])

    assert {one.fate for one in judged} == {"recorded"}
    assert [one.predicted for one in judged[:3]] == ["positive", "negative", "negative"]
    found = store.judged()
    assert len(found) == len(ids)
    assert sum(one["label"] == one["predicted"] for one in found) == 400
    assert found[0]["groups"] == {"region": "north"}


def test_a_repeated_label_is_known_a_changed_one_replaces_and_an_unknown_id_is_told(
    place: StateLocation, ids: list[str]
) -> None:
    store = OutcomeStore(place)
    outcomes = [
        Outcome(ids[0], "positive", {}),
        Outcome(ids[0], "positive", {}),
        Outcome(ids[0], "negative", {}),
        Outcome("nothing", "positive", {}),
        Outcome("\0", "positive", {}),
        Outcome("\ud800", "positive", {}),
    ]

    assert [one.fate for one in store.add(outcomes)] == ["recorded", "repeated", "changed", *["unknown"] * 3]
    assert [one["label"] for one in store.judged()] == ["negative"]


def test_labels_that_arrive_twice_at_once_are_recorded_once(place: StateLocation, ids: list[str]) -> None:
    def add(order: int) -> list[Judged]:
        return OutcomeStore(place).add([Outcome(one, "positive", {}) for one in ids[::order]])

    with ThreadPoolExecutor(2) as pool:
        fates = Counter(one.fate for judged in pool.map(add, (1, -1)) for one in judged)

    assert fates == {"recorded": len(ids), "repeated": len(ids)}


@pytest.mark.parametrize("text", ["\n\t🎭", "\ud800", "\0"])
def test_groups_are_kept_whatever_they_are_called(place: StateLocation, ids: list[str], text: str) -> None:
    store = OutcomeStore(place)
    store.add([Outcome(ids[0], "positive", {text: text})])

    assert [one["groups"] for one in store.judged()] == [{text: text}]


def test_only_predictions_since_then_are_judged(place: StateLocation, ids: list[str]) -> None:
    store = OutcomeStore(place)
    store.add([Outcome(ids[0], "positive", {})])

    assert store.judged(since=4e9) == []


def test_the_record_is_read_back_oldest_first(place: StateLocation, ids: list[str]) -> None:
    found = list(PredictionStore(place).since(0.0))

    assert {one.prediction_id for one in found} == set(ids)
    assert [one.time for one in found] == sorted(one.time for one in found)


def test_a_store_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    place = tmp_path / "state"
    place.write_text("a file where the folder should be")

    with pytest.raises(ServiceError, match="could not be kept"):
        OutcomeStore(place).add([Outcome("x", "positive", {})])
