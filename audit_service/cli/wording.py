"""Words for people about a task: for its input, its examples, its unit, its predictions and its targets."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

DIGITS = 4
"""Significant digits of the numbers in a prediction or target that is shown as JSON."""


@dataclass(frozen=True)
class Wording:
    """Words for a task; those of text classification where nothing else is said.

    Attributes:
        input: What is explained: ``text``, or ``input``.
        example: A training example.
        unit: What measurements and influences are counted in; empty where the task does not say.
        marks: Whether spans of an example can be marked in what is shown of it: it is one text.
        maps: Whether parts of an example are regions, which a map can show: it is one picture.
    """

    input: str = "text"
    example: str = "training text"
    unit: str = "log-odds"
    marks: bool = True
    maps: bool = False

    @classmethod
    def of(cls, task: object) -> Wording:
        """The words for a task."""
        # Imported here, not above: it imports torch, which `--help` does not wait for.
        from influence_engine.tasks import fields_of, input_fields, measurement_unit

        inputs = input_fields(fields_of(task))
        if len(inputs) == 1 and inputs[0].readable:
            return cls(unit=measurement_unit(task))
        if len(inputs) == 1 and inputs[0].viewable:
            return cls("picture", "training picture", measurement_unit(task), marks=False, maps=True)
        return cls("input", "training example", measurement_unit(task), marks=False)

    @property
    def measurement(self) -> str:
        """The name of a measurement: its unit, where there is one."""
        return self.unit or "measurement"

    @property
    def the_measurement(self) -> str:
        """The name of a measurement with its article."""
        return f"the {self.measurement}"

    def amount(self, number: str) -> str:
        """A number with its unit."""
        return f"{number} {self.unit}".rstrip()


def prediction_text(prediction: Mapping[str, Any] | None) -> str | None:
    """``label (confidence)``, or that of each entity, where there are both, else the prediction as JSON; None where
    nothing is predicted.
    """
    if prediction is None:
        return None
    entities = prediction.get("entities")
    if isinstance(entities, list):
        return ", ".join(f"{one['text']} ({one['label']} {one['confidence']:.1%})" for one in entities) or "no entity"
    label, confidence = prediction.get("label"), prediction.get("confidence")
    if label is not None and confidence is not None:
        return f"{label} ({confidence:.1%})"
    return compact_json(prediction)


def target_text(target: Any) -> str | None:
    """A target in a line: a label by its name, anything else as JSON; None where it has no name."""
    label = target.get("label") if isinstance(target, Mapping) and set(target) == {"label"} else target
    return label if label is None or isinstance(label, str) else compact_json(label)


def tiers_shown(tiers: Mapping[str, str]) -> dict[str, str]:
    """What there is of each tier, in rows: tiers of which the same is said are one row."""
    by_state: dict[str, list[str]] = {}
    for tier, state in tiers.items():
        by_state.setdefault(state, []).append(tier)
    return {f"{'tier' if len(names) == 1 else 'tiers'} {', '.join(names)}": state for state, names in by_state.items()}


def compact_json(value: Any) -> str:
    """A JSON value in a line, its numbers to four digits."""
    return json.dumps(_rounded(value), ensure_ascii=False)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, Mapping):
        return {name: _rounded(part) for name, part in value.items()}
    return [_rounded(part) for part in value] if isinstance(value, list) else value
