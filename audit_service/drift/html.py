"""A drift report as one HTML file: no script, nothing fetched, plots drawn as SVG."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from audit_service.templates import p_value, render

BAR, GAP, LABEL, WIDTH = 9, 8, 190, 420
"""Of the plots, in pixels: a bar's height, the space between two bins, the room for names, the longest bar."""


def as_html(report: Mapping[str, Any]) -> str:
    """The report, for people."""
    outside, outcomes = report["outside_index"], report["outcomes"]
    moved = [_name(one) for one in report["signals"] if one["moved"]]
    if outside and outside["moved"]:
        moved.append("inputs outside the index")
    return render(
        "drift_report.html",
        report=report,
        moved=moved,
        left_out=[f"{count} of {signal}" for signal, count in report["left_out"].items()],
        signals=[
            [_name(one), f"{one['psi']:.4f}", f"{one['threshold']:.4f}", f"{one['js']:.4f}", _test(one["test"])]
            for one in report["signals"]
        ],
        charts=[_chart(one) for one in report["signals"]],
        groups=[
            [
                one["by"],
                one["group"] or "(none)",
                _percent(one["share"]),
                _percent(one["reference"]),
                f"{one['change']:+.2%}",
                p_value(one["p_value"]),
            ]
            for one in report["groups"]
        ],
        outside_test=_test(outside["test"]) if outside else "",
        inputs=[
            [
                one["text"],
                _predicted(one),
                ", ".join(one["why"]),
            ]
            for one in report["inputs"]
        ],
        outcomes_test=_test(outcomes["test"]) if outcomes else "",
        by_group=[
            [one["group"], one["examples"], _percent(one["accuracy"])]
            for one in (outcomes["groups"] if outcomes else ())
        ],
        calibration=[
            [
                f"{one['confidence_up_to']:g}",
                one["examples"],
                _percent(one["mean_confidence"]),
                _percent(one["accuracy"]),
            ]
            for one in (outcomes["calibration"] if outcomes else ())
        ],
    )


def _chart(signal: Mapping[str, Any]) -> dict[str, Any]:
    """Two bars a bin that is not empty: its share now, and in the reference."""
    bins = [one for one in signal["bins"] if one["share"] or one["reference"]]
    top = max((max(one["share"], one["reference"]) for one in bins), default=1.0) or 1.0
    step = 2 * BAR + GAP
    return {
        "name": _name(signal),
        "width": LABEL + WIDTH + 130,
        "height": len(bins) * step,
        "left": LABEL,
        "thickness": BAR,
        "bars": [
            {
                "name": _short(one["bin"]),
                "middle": number * step + BAR + 4,
                "end": f"{LABEL + max(one['share'], one['reference']) / top * WIDTH + 6:.0f}",
                "share": one["share"],
                "reference": one["reference"],
                "parts": [
                    {"y": number * step + offset, "width": f"{one[key] / top * WIDTH:.1f}", "colour": colour}
                    for offset, key, colour in ((0, "share", "#1f6feb"), (BAR, "reference", "#b8bfc7"))
                ],
            }
            for number, one in enumerate(bins)
        ],
    }


def _predicted(one: Mapping[str, Any]) -> str:
    if one["label"] is None:
        whole = one.get("prediction")
        return "" if whole is None else json.dumps(whole, ensure_ascii=False)
    return f"{one['label']} ({_percent(one['confidence'])})" if one["confidence"] is not None else str(one["label"])


def _name(signal: Mapping[str, Any]) -> str:
    return f"influence by {signal['by']}" if signal["by"] else str(signal["signal"])


def _test(test: Mapping[str, Any] | None) -> str:
    return "" if test is None else f"{test['name']}, {p_value(test['p_value'])}"


def _percent(value: float) -> str:
    return f"{value:.1%}"


def _short(text: str) -> str:
    return text if len(text) <= 28 else text[:27] + "…"
