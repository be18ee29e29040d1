"""Whether drift was seen: the shifted traffic moved a signal, and the baseline traffic none; and what JSON calls it."""

from __future__ import annotations

from typing import Any

import pytest

from audit_service.workflows.drift_watch import Observation, drift_was_seen

STILL: dict[str, Any] = {"signals": [{"moved": False}], "outside_index": {"moved": False}}
MOVED: dict[str, Any] = {"signals": [{"moved": False}, {"moved": True}], "outside_index": None}
OUTSIDE: dict[str, Any] = {"signals": [], "outside_index": {"moved": True}}


def observation(traffic: str, drift: dict[str, Any]) -> Observation:
    return Observation(traffic, "some/domain", drift, [])


@pytest.mark.parametrize(("drift", "moved"), [(STILL, False), (MOVED, True), (OUTSIDE, True)])
def test_a_signal_or_the_inputs_outside_the_index_may_have_moved(drift: dict[str, Any], moved: bool) -> None:
    assert observation("baseline", drift).moved is moved


def test_json_calls_traffic_as_released_versions_do() -> None:
    observations = [observation("baseline", STILL), observation("shifted", MOVED)]
    assert [one.to_dict() for one in observations] == [
        {"traffic": "quiet", "source": "some/domain", "drift": STILL, "alerts": []},
        {"traffic": "shifted", "source": "some/domain", "drift": MOVED, "alerts": []},
    ]


@pytest.mark.parametrize(
    ("baseline", "shifted", "seen"),
    [(STILL, MOVED, True), (STILL, OUTSIDE, True), (STILL, STILL, False), (MOVED, MOVED, False)],
)
def test_drift_was_seen_where_only_the_shifted_traffic_moved_something(
    baseline: dict[str, Any], shifted: dict[str, Any], seen: bool
) -> None:
    assert drift_was_seen([observation("baseline", baseline), observation("shifted", shifted)]) is seen
