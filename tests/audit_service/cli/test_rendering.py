"""An explanation as a person reads it."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from audit_service.cli.rendering import explanation
from audit_service.cli.wording import Wording


def example(influence: float, text: str | None = "a fine [bold]film[/]") -> dict[str, Any]:
    return {
        "example_handle": "ex_1",
        "rank": 1,
        "influence": influence,
        "error_90": 0.125,
        "probability_change": influence / 20,
        "tier": "estimated",
        "polarity": "proponent" if influence > 0 else "opponent",
        "label": "good",
        "source": None,
        "text": text,
    }


def group(by: str, name: str, share: float, influence: float) -> dict[str, Any]:
    return {"by": by, "group": name, "share": share, "influence": influence, "examples": 10, "error_90": 0.25}


QUALITY = {"share_returned": 0.12, "parity": True, "error_90": 0.5, "agreement": 0.93, "warnings": []}


def answer(**changes: Any) -> dict[str, Any]:
    return {
        "prediction": {"label": "good", "confidence": 0.912, "scores": {"good": 0.912, "bad": 0.088}},
        "differences": {
            "target": "good",
            "measurement": 2.34,
            "base_measurement": -0.1,
            "base_prediction": {"label": "bad", "confidence": 0.525, "scores": {"good": 0.475, "bad": 0.525}},
            "modules": [{"module": f"layer.{number}", "change": 0.1 * number} for number in range(9)],
            "modules_residual": 0.07,
        },
        "examples": [example(0.5), example(-0.25)],
        "groups": [
            group("label", "good", 0.75, 0.5),
            group("label", "bad", 0.25, -0.5),
            group("source", "the only one", 1.0, 0.0),
        ],
        "quality": QUALITY,
        "timings_ms": {"gradient": 40.4, "search": 1.6},
        **changes,
    }


def shown(value: dict[str, Any], text: str = "what a film") -> str:
    output = io.StringIO()
    Console(file=output, width=120).print(explanation(value, text))
    return output.getvalue()


def test_prediction_base_model_and_change_stand_at_the_top() -> None:
    output = shown(answer())

    assert "good (91.2%)" in output
    assert "bad (52.5%)" in output
    assert "-0.10 in the base model, +2.34 after fine-tuning" in output


def test_proponents_and_opponents_are_apart_with_signed_influence() -> None:
    supporting, _, opposing = shown(answer()).partition("(opponents)")

    assert "+0.5000" in supporting
    assert "-0.2500" in opposing


def test_beside_an_influence_stands_the_change_of_the_probability_in_points() -> None:
    lines = shown(answer()).splitlines()

    assert any("+0.5000 ± 0.1250" in line and "+2.500" in line for line in lines)
    assert any("-0.2500 ± 0.1250" in line and "-1.250" in line for line in lines)
    assert any("probability" in line and "percentage points" in line for line in lines)


def test_a_task_without_probabilities_has_no_column_for_them() -> None:
    output = shown(answer(examples=[{**example(0.5), "probability_change": None}]))

    assert "+0.5000 ± 0.1250" in output
    assert "probability" not in output


def test_texts_are_shown_as_they_are_whatever_they_look_like() -> None:
    output = shown(answer(), text="[red]alarm[/red]")

    assert "[red]alarm[/red]" in output
    assert "a fine [bold]film[/]" in output


def test_an_example_without_text_shows_its_handle() -> None:
    assert "ex_1" in shown(answer(examples=[example(0.5, text=None)]))


def test_the_largest_module_changes_are_named_and_the_rest_adds_up() -> None:
    output = shown(answer())

    assert "+0.800  layer.8" in output
    assert "+0.300  3 other modules" in output
    assert "+0.070  not explained at first order" in output


def test_another_target_than_the_prediction_is_named() -> None:
    differences = {**answer()["differences"], "target": "bad"}

    assert "the log-odds of 'bad'" in shown(answer(differences=differences))


def test_without_a_base_model_only_the_fine_tuned_measurement_is_shown() -> None:
    differences = {"target": "good", "measurement": 2.34, "base_measurement": None, "base_prediction": None}

    output = shown(answer(differences=differences))

    assert "+2.34" in output
    assert "base model" not in output


def test_the_answer_of_a_base_model_without_a_head_of_its_own_is_named_chance() -> None:
    differences = {**answer()["differences"], "base_head": "random"}

    assert "bad (52.5%), by a head of random weights" in shown(answer(differences=differences))
    assert "random weights" not in shown(answer())


def test_a_disagreement_between_torch_and_the_served_model_is_said_loudly() -> None:
    assert "NO: torch disagrees" in shown(answer(quality={**QUALITY, "parity": False}))


def test_a_refined_answer_says_how_it_was_solved() -> None:
    solved = {"passes": 7, "last_change": 0.0042, "agreement_with_estimated": 0.951}

    output = shown(answer(quality={**QUALITY, "refinement": solved}))

    assert "7 passes over the training examples, the last changed influences by 0.4%" in output
    assert "agree by 0.95" in output


def test_groups_of_columns_with_several_are_shown_with_their_intervals() -> None:
    output = shown(answer())

    assert "+0.50 ± 0.25" in output
    assert "label good" in output
    assert "the only one" not in output


def test_influences_have_intervals_where_the_index_was_checked() -> None:
    assert "+0.5000 ± 0.1250" in shown(answer())
    assert "0.93 with retraining" in shown(answer())
    unchecked = shown(answer(examples=[{**example(0.5), "error_90": None}], quality={**QUALITY, "agreement": None}))
    assert "± 0.12" not in unchecked
    assert "retraining" not in unchecked


def test_doubts_are_said_in_words() -> None:
    assert "warnings" not in shown(answer())
    assert "warnings" in shown(answer(quality={**QUALITY, "warnings": ["the input is unlike the training examples"]}))


TEXT = "from boston to denver"
ENTITY = {"start": 5, "end": 11, "label": "origin", "confidence": 0.97, "text": "boston"}
PARTS = [
    {"field": "text", "start": None, "end": None, "label": None, "influence": 0.0001},
    {"field": "text", "start": 9, "end": 16, "label": "origin", "influence": 0.45},
    {"field": "text", "start": 21, "end": 24, "label": "destination", "influence": 0.001},
]


def entities_answer(**changes: Any) -> dict[str, Any]:
    taught = {
        **example(0.5, text="to from [phoenix] to lax"),
        "label": "destination, origin",
        "probability_change": None,
    }
    taught |= {"parts": PARTS, "parts_residual": 0.05}
    differences = {**answer()["differences"], "target": {"span": [5, 11], "label": "origin"}}
    differences["base_prediction"] = {"entities": []}
    quality = {**QUALITY, "parts": {"exact": False, "factor": 1.2, "agreement": 0.93}}
    found = answer(prediction={"entities": [ENTITY]}, examples=[taught], differences=differences, quality=quality)
    return {**found, **changes}


def test_entities_are_marked_in_the_text_and_named_with_their_confidence() -> None:
    output = shown(entities_answer(), text=TEXT)

    assert "from boston (origin) to denver" in output
    assert "boston (origin 97.0%)" in output
    assert "no entity" in output  # what the base model says
    assert "the log-odds of 'boston' as origin" in output


def test_the_mentions_that_taught_something_stand_in_the_training_text() -> None:
    output = shown(entities_answer(), text=TEXT)

    assert "to from [phoenix (origin +0.4500)] to lax (destination) not placed +0.0500" in output
    assert "elsewhere" not in output, "small shares have no number"
    assert "label" not in output.partition("(proponents)")[2].splitlines()[1], "types stand in the text"
    assert "estimates, whose sums agree with the influences by 0.93" in output


def test_parts_of_what_is_no_text_are_not_marked_in_it() -> None:
    output = io.StringIO()
    Console(file=output, width=120).print(
        explanation(entities_answer(), TEXT, Wording("input", "example", marks=False))
    )

    assert "phoenix" in output.getvalue()
    assert "+0.4500" not in output.getvalue()


def test_many_groups_of_a_column_are_folded() -> None:
    groups = [group("label", f"kind {number}", 0.05, 0.01) for number in range(20)]
    output = shown(answer(groups=groups))

    assert "kind 7" in output
    assert "kind 8" not in output
    assert "12 other groups by label" in output
    assert "60.0%" in output
