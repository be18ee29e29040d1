"""A drift report as one HTML file: no script, nothing fetched, plots drawn as SVG."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem; color: #1b1b1b; }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2rem } table { border-collapse: collapse; width: 100% }
th, td { text-align: left; padding: .25rem .6rem; border-bottom: 1px solid #ddd; vertical-align: top }
td.number { text-align: right; font-variant-numeric: tabular-nums } .moved { color: #a40000; font-weight: 600 }
.still { color: #555 } figure { margin: 1rem 0 } figcaption { color: #555 }
svg text { font: 12px system-ui, sans-serif }
"""
BAR, GAP, LABEL, WIDTH = 9, 8, 190, 420


def as_html(report: Mapping[str, Any]) -> str:
    """The report, for people."""
    moved = [_name(one) for one in report["signals"] if one["moved"]]
    if report["outside_index"] and report["outside_index"]["moved"]:
        moved.append("inputs outside the index")
    verdict = f"Moved: {', '.join(moved)}." if moved else "Nothing moved beyond what quiet traffic shows."
    parts = [
        f"<h1>Drift of {_text(report['model'])}</h1>",
        f"<p>{_text(report['inputs_read'])} inputs, {_text(report['inputs_explained'])} of them explained "
        f"({_text(report['tier'])}); reference {_text(report['reference']['digest'][:12])} of "
        f"{_text(report['reference']['created'])}; written {_text(report['created'])}.</p>",
        f'<p class="{"moved" if moved else "still"}">{_text(verdict)}</p>',
        "<h2>Signals</h2>",
        _table(
            ["signal", "PSI", "alert above", "Jensen-Shannon", "test"],
            [
                [_name(one), _number(one["psi"]), _number(one["threshold"]), _number(one["js"]), _test(one["test"])]
                for one in report["signals"]
            ],
        ),
        *(_bars(one) for one in report["signals"]),
        "<h2>Groups of training examples that gained and lost influence</h2>",
        _table(
            ["grouped by", "group", "share now", "reference", "change", "p"],
            [
                [
                    one["by"],
                    one["group"] or "(none)",
                    _percent(one["share"]),
                    _percent(one["reference"]),
                    f"{one['change']:+.2%}",
                    _p(one["p_value"]),
                ]
                for one in report["groups"]
            ],
        ),
    ]
    if report["outside_index"]:
        outside = report["outside_index"]
        parts.append(
            f"<p>Outside the index: {_percent(outside['share'])} of the explained inputs, "
            f"{_percent(outside['reference'])} in the reference, "
            f"alert above {_percent(outside['threshold'])}; {_test(outside['test'])}.</p>"
        )
    parts += ["<h2>Inputs that moved it</h2>", _inputs(report["inputs"])]
    if report["outcomes"]:
        parts += ["<h2>Back-testing</h2>", _outcomes(report["outcomes"])]
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8">'
        f"<title>Drift of {_text(report['model'])}</title>\n"
        f"<style>{STYLE}</style></head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _bars(signal: Mapping[str, Any]) -> str:
    bins = [one for one in signal["bins"] if one["share"] or one["reference"]]
    top = max((max(one["share"], one["reference"]) for one in bins), default=1.0) or 1.0
    step = 2 * BAR + GAP
    rows = []
    for number, one in enumerate(bins):
        y = number * step
        rows.append(f'<text x="{LABEL - 8}" y="{y + BAR + 4}" text-anchor="end">{_text(_short(one["bin"]))}</text>')
        for offset, key, colour in ((0, "share", "#1f6feb"), (BAR, "reference", "#b8bfc7")):
            width = one[key] / top * WIDTH
            rows.append(f'<rect x="{LABEL}" y="{y + offset}" width="{width:.1f}" height="{BAR}" fill="{colour}"/>')
        rows.append(
            f'<text x="{LABEL + max(one["share"], one["reference"]) / top * WIDTH + 6:.0f}" y="{y + BAR + 4}">'
            f"{_percent(one['share'])} ({_percent(one['reference'])})</text>"
        )
    name = _name(signal)
    return (
        f'<figure><svg role="img" aria-label="Shares of {_text(name)}" width="{LABEL + WIDTH + 130}" '
        f'height="{len(bins) * step}">{"".join(rows)}</svg>'
        f"<figcaption>{_text(name)}: now (blue) and in the reference (grey)</figcaption></figure>"
    )


def _inputs(inputs: Sequence[Mapping[str, Any]]) -> str:
    if not inputs:
        return "<p>None stands out.</p>"
    return _table(
        ["input", "predicted", "why"],
        [
            [
                one["text"],
                _predicted(one),
                ", ".join(one["why"]),
            ]
            for one in inputs
        ],
    )


def _predicted(one: Mapping[str, Any]) -> str:
    if one["label"] is None:
        whole = one.get("prediction")
        return "" if whole is None else json.dumps(whole, ensure_ascii=False)
    return f"{one['label']} ({_percent(one['confidence'])})" if one["confidence"] is not None else str(one["label"])


def _outcomes(outcomes: Mapping[str, Any]) -> str:
    before = outcomes["reference_accuracy"]
    against = "" if before is None else f", {_percent(before)} in the reference ({_test(outcomes['test'])})"
    error = outcomes["calibration_error"]
    calibration = "" if error is None else f" Confidence and accuracy differ by {_percent(error)} on average."
    return (
        f"<p>{outcomes['examples']} true labels: {_percent(outcomes['accuracy'])} right{against}.{calibration}</p>"
        + _table(
            ["group", "true labels", "right"],
            [[one["group"], one["examples"], _percent(one["accuracy"])] for one in outcomes["groups"]],
        )
        + _table(
            ["confidence up to", "true labels", "mean confidence", "right"],
            [
                [
                    f"{one['confidence_up_to']:g}",
                    one["examples"],
                    _percent(one["mean_confidence"]),
                    _percent(one["accuracy"]),
                ]
                for one in outcomes["calibration"]
            ],
        )
    )


def _table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    head = "".join(f"<th>{_text(one)}</th>" for one in heads)
    body = "".join("<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _name(signal: Mapping[str, Any]) -> str:
    return f"influence by {signal['by']}" if signal["by"] else str(signal["signal"])


def _test(test: Mapping[str, Any] | None) -> str:
    return "" if test is None else f"{test['name']}, {_p(test['p_value'])}"


def _p(value: float | None) -> str:
    if value is None:
        return ""
    return "p < 0.0001" if value < 1e-4 else f"p = {value:.4f}"


def _number(value: float) -> str:
    return f"{value:.4f}"


def _percent(value: float) -> str:
    return f"{value:.1%}"


def _short(text: str) -> str:
    return text if len(text) <= 28 else text[:27] + "…"


def _text(value: Any) -> str:
    return escape(str(value))
