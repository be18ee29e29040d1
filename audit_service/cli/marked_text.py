"""A text with some of its spans marked: the entities that were found in it, the mentions that taught something."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.markup import escape

SHOWN_SHARE = 0.05
"""A part with less of the sum of all parts' absolute influences has no number beside it."""


def with_entities(text: str, entities: Sequence[Mapping[str, Any]]) -> str:
    """Rich markup of a text whose entities are underlined, each with its type behind it."""
    return _marked(text, [(one, one["label"]) for one in entities])


def with_parts(text: str, parts: Sequence[Mapping[str, Any]], residual: float) -> str:
    """Rich markup of a training example's text whose parts are underlined, each with its label and influence.

    What lies in no part, and what the split did not place, follow the text.
    """
    whole = sum(abs(part["influence"]) for part in parts)
    spans = [part for part in parts if part["start"] is not None]
    rest = sum(part["influence"] for part in parts if part["start"] is None)

    def note(part: Mapping[str, Any]) -> str:
        small = abs(part["influence"]) < SHOWN_SHARE * whole
        return " ".join([part["label"] or "", *([] if small else [f"{part['influence']:+.4f}"])]).strip()

    behind = f"[dim]elsewhere {rest:+.4f}, not placed {residual:+.4f}[/]"
    return f"{_marked(text, [(part, note(part)) for part in spans])} {behind}"


def target_in_words(target: Mapping[str, Any], text: str) -> str | None:
    """``'boston' as origin``, where the target is a span of the text; ``None`` where it is not."""
    span, label = target.get("span"), target.get("label")
    if not isinstance(span, list | tuple) or not isinstance(label, str):
        return None
    named = "no entity" if label == "O" else label
    return f"{text[slice(*span)]!r} as {named}"


def _marked(text: str, notes: Sequence[tuple[Mapping[str, Any], str]]) -> str:
    found, done = [], 0
    for span, note in sorted(notes, key=lambda pair: pair[0]["start"]):
        found.append(escape(text[done : span["start"]]))
        found.append(f"[underline]{escape(text[span['start'] : span['end']])}[/] [dim]({escape(note)})[/]")
        done = span["end"]
    return "".join([*found, escape(text[done:])])
