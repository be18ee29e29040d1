"""What several explanations have in common: which examples, which groups, and how that is shown."""

from __future__ import annotations

import io

import pytest
import torch
from rich.console import Console

from audit_service.cli.rendering import sharing
from audit_service.workflows.aggregate_influence import SharedInfluence, shared_examples, shared_groups


def sums() -> SharedInfluence:
    """Two explanations over four training examples."""
    shared = SharedInfluence.none_of(4)
    returned = [[("a", "proponent"), ("b", "opponent")], [("a", "opponent"), ("c", "proponent")]]
    explanations = [
        {"examples": [{"example_handle": handle, "polarity": polarity} for handle, polarity in one]} for one in returned
    ]
    scores = torch.tensor([[0.5, -0.25, 0.25, 0.0], [-0.2, 0.1, 0.4, 0.3]])
    shared.add(explanations, scores, {"a": 0, "b": 1, "c": 2, "d": 3})
    return shared


def test_examples_of_most_explanations_come_first_and_then_those_of_the_largest_sums() -> None:
    rows = sums().most_shared()
    described = [
        {"example_handle": f"ex_{row}", "label": "good", "source": None, "fields": {"text": f"text {row}"}}
        for row in rows
    ]

    first, *others = shared_examples(sums(), rows, described, "text")

    assert rows == [0, 2, 1]
    assert [one["influence"] for one in others] == pytest.approx([0.65, -0.15])
    assert first.pop("influence") == pytest.approx(0.3)
    assert first.pop("share") == pytest.approx(0.35)
    assert first == {
        "example_handle": "ex_0",
        "explanations": 2,
        "proponents": 1,
        "opponents": 1,
        "label": "good",
        "source": None,
        "text": "text 0",
    }


def test_groups_are_of_label_and_source_and_the_largest_share_comes_first() -> None:
    groups = shared_groups(sums(), ["good", "bad", "good", "bad"], ["web", "web", "web", None])

    assert [(group["label"], group["source"]) for group in groups] == [("good", "web"), ("bad", "web"), ("bad", None)]
    assert [group["share"] for group in groups] == pytest.approx([0.675, 0.175, 0.15])
    assert [group["influence"] for group in groups] == pytest.approx([0.95, -0.15, 0.3])
    assert [(group["proponents"], group["opponents"]) for group in groups] == [(2, 1), (0, 1), (0, 0)]
    assert [group["share_of_examples"] for group in groups] == [0.5, 0.25, 0.25]


def test_the_tables_show_texts_on_one_line_and_as_they_are() -> None:
    example = {
        "example_handle": "ex_1",
        "explanations": 12,
        "proponents": 9,
        "opponents": 3,
        "influence": 1.25,
        "share": 0.1,
        "label": "good",
        "source": "web",
        "text": "a [red]fine[/]\nfilm " + "and more " * 40,
    }
    summary = {
        "explained": 40,
        "skipped": 60,
        "shared_examples": [example, {**example, "text": None}],
        "shared_groups": shared_groups(sums(), ["good", "bad", "good", "bad"], ["web", "web", "web", None]),
    }
    output = io.StringIO()
    Console(file=output, width=100).print(sharing(summary))

    lines = output.getvalue().splitlines()
    assert "40 rows, 60 not asked for" in lines[0]
    assert any("9" in line and "+1.2500" in line and "a [red]fine[/] film and" in line for line in lines)
    assert any("ex_1" in line for line in lines)
    assert any("67.5%" in line and "50.0%" in line and "+0.95" in line for line in lines)
