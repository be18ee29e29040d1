"""Reports: baseline inputs move nothing, moved ones are named, and odd texts stay text."""

from __future__ import annotations

import json
import math
from html.parser import HTMLParser
from typing import Any

import pytest

from audit_service.drift.html import as_html
from audit_service.drift.report import back_test, drift_report
from audit_service.monitoring.drift_baseline import DriftBaseline
from tests.audit_service.drift.conftest import explained, predicted

TEXTS = [f"<script>alert({number})</script> 🎭" for number in range(300)]


def report(baseline: DriftBaseline, *, seen: Any = None, why: Any = None, outcomes: Any = ()) -> dict[str, Any]:
    seen, why = seen or predicted(seed=1), why or explained(seed=1)
    return drift_report(baseline, TEXTS[: len(seen)], seen, why, list(range(len(why))), outcomes)


def signals(found: dict[str, Any]) -> dict[str, Any]:
    return {f"{one['signal']} {one['by'] or ''}".strip(): one for one in found["signals"]}


def test_baseline_inputs_move_nothing(baseline: DriftBaseline) -> None:
    found = report(baseline)

    assert not any(one["moved"] for one in found["signals"])
    assert not found["outside_index"]["moved"]
    assert all(one["test"]["p_value"] > 1e-3 for one in found["signals"] if one["test"])


def test_influence_that_moves_alone_is_named_with_its_group(baseline: DriftBaseline) -> None:
    found = report(baseline, why=explained(share_of_new=0.4, seed=1))

    moved = {name for name, one in signals(found).items() if one["moved"]}
    assert moved == {"influence batch"}
    assert {one["group"] for one in found["groups"][:2]} == {"new\n🎭", "old"}
    gained = next(one for one in found["groups"] if one["group"] == "new\n🎭")
    assert gained["change"] == pytest.approx(0.2, abs=0.02)
    assert gained["p_value"] < 1e-6


def test_other_labels_and_unknown_inputs_are_seen_with_a_test(baseline: DriftBaseline) -> None:
    found = report(baseline, seen=predicted(share_of_a=0.85, seed=1), why=explained(outside=0.4, seed=1))

    assert signals(found)["prediction"]["moved"]
    assert signals(found)["prediction"]["test"]["p_value"] < 1e-6
    assert found["outside_index"]["moved"]
    assert found["inputs"][0]["why"]
    assert "outside the index" in found["inputs"][0]["why"]


def test_a_report_is_json_and_html_that_shows_texts_as_text(baseline: DriftBaseline) -> None:
    outcomes = [
        {"label": "a", "predicted": "a", "confidence": 0.9, "groups": {"region": "<b>north</b>"}},
        {"label": "a", "predicted": "b", "confidence": 0.6, "groups": {}},
    ]
    found = report(baseline, seen=predicted(share_of_a=0.9, seed=1), outcomes=outcomes)
    json.dumps(found, allow_nan=False)

    tags: list[str] = []

    class Tags(HTMLParser):
        def handle_starttag(self, tag: str, attrs: Any) -> None:
            tags.append(tag)

    page = as_html(found)
    Tags().feed(page)
    assert not {"script", "b"} & set(tags)
    assert tags.count("svg") == len(found["signals"])
    assert "http" not in page.replace("http-equiv", "")


HOSTILE = """<script>alert(1)</script><img src=x onerror="alert(2)">'"{{ 7 * 7 }}{% raw %}</style>&lt;\n\0"""


def texts_replaced(value: Any) -> Any:
    """The same report with hostile text wherever it holds a text that is not a key of ours."""
    if isinstance(value, dict):
        return {key: one if key == "signal" else texts_replaced(one) for key, one in value.items()}
    if isinstance(value, list):
        return [texts_replaced(one) for one in value]
    return HOSTILE if isinstance(value, str) else value


def test_hostile_text_anywhere_in_a_report_changes_nothing_but_text(baseline: DriftBaseline) -> None:
    outcomes = [
        {"label": "a", "predicted": "a", "confidence": 0.9, "groups": {"region": "north"}},
        {"label": "a", "predicted": "b", "confidence": 0.6, "groups": {}},
    ]
    found = report(baseline, seen=predicted(share_of_a=0.9, seed=1), why=explained(outside=0.4), outcomes=outcomes)

    class Shape(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.tags: list[Any] = []
            self.texts = ""

        def handle_starttag(self, tag: str, attrs: Any) -> None:
            self.tags.append((tag, [name for name, _ in attrs]))
            self.texts += "".join(value for _, value in attrs)

        def handle_data(self, data: str) -> None:
            self.texts += data

    quiet, hostile = Shape(), Shape()
    quiet.feed(as_html(found))
    hostile.feed(as_html(texts_replaced(found)))

    assert hostile.tags == quiet.tags
    assert "{{ 7 * 7 }}" in hostile.texts
    assert HOSTILE.replace("\0", "") in hostile.texts.replace("\0", "").replace("\ufffd", "")


def test_back_testing_compares_with_the_held_out_accuracy(baseline: DriftBaseline) -> None:
    outcomes = [
        {"label": "a", "predicted": "a" if number % 2 else "b", "confidence": 0.97, "groups": {"region": "north"}}
        for number in range(100)
    ]

    found = back_test(baseline, outcomes)

    assert found is not None
    assert found["accuracy"] == 0.5
    assert {one["group"]: one["accuracy"] for one in found["groups"]} == {"label=a": 0.5, "region=north": 0.5}
    assert found["calibration_error"] == pytest.approx(0.47)
    assert back_test(baseline, []) is None


def test_what_is_not_finite_is_in_no_bin_and_the_report_says_how_many_there_were(baseline: DriftBaseline) -> None:
    seen, why = predicted(seed=1), explained(seed=1)
    seen.confidences[:3] = [math.nan, math.inf, -math.inf]
    assert seen.features is not None
    seen.features[0, 0] = math.nan
    why.groups[0] = dict.fromkeys(why.groups[0], math.nan)
    outcomes = [{"label": "a", "predicted": "a", "confidence": math.nan, "groups": {}}]

    found = report(baseline, seen=seen, why=why, outcomes=outcomes)

    assert found["left_out"] == {"confidence": 3, "embedding": 1, "influence": 1}
    assert not any(one["moved"] for one in found["signals"])
    json.dumps(found, allow_nan=False)
    assert "3 of confidence, 1 of embedding, 1 of influence" in as_html(found)
    assert report(baseline)["left_out"] == {}
    assert "Not finite" not in as_html(report(baseline))
