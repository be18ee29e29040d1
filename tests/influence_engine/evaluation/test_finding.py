"""Promises: a ranking's figures are what counting gives, chance where it is blind, and lie within their intervals."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from influence_engine.evaluation.finding import area_under_curve, average_precision, figures, recall

RANKINGS = st.lists(st.booleans(), min_size=2, max_size=40).filter(lambda found: 0 < sum(found) < len(found))


@given(RANKINGS)
def test_the_area_counts_the_pairs_in_the_right_order(found: list[bool]) -> None:
    pairs = [(a, b) for a, b in product(range(len(found)), repeat=2) if found[a] and not found[b]]
    expected = sum(a < b for a, b in pairs) / len(pairs)
    assert area_under_curve(torch.tensor(found)) == pytest.approx(expected)


@given(RANKINGS)
def test_average_precision_is_the_mean_of_the_precisions_down_to_each(found: list[bool]) -> None:
    precisions = [sum(found[: place + 1]) / (place + 1) for place, one in enumerate(found) if one]
    assert average_precision(torch.tensor(found)) == pytest.approx(sum(precisions) / len(precisions))


@given(RANKINGS, st.floats(0, 1))
def test_recall_is_the_share_of_those_sought_that_stand_in_front(found: list[bool], share: float) -> None:
    assert recall(torch.tensor(found), share) == pytest.approx(sum(found[: round(share * len(found))]) / sum(found))


def test_where_nothing_or_all_is_sought_no_order_is_better_than_another() -> None:
    assert [area_under_curve(torch.full((5,), each)) for each in (False, True)] == [0.5, 0.5]
    assert average_precision(torch.zeros(5, dtype=torch.bool)) == recall(torch.zeros(5, dtype=torch.bool), 0.2) == 0.0


def test_intervals_hold_the_figure_are_narrower_for_more_examples_and_the_same_again() -> None:
    generator = torch.Generator().manual_seed(0)
    measures = {"area": area_under_curve, "precision": average_precision}
    widths = []
    for count in (50, 800):
        # Those that are sought tend to the front.
        found = torch.rand(count, generator=generator) < torch.linspace(0.5, 0.0, count)
        got = figures(found, measures)
        assert figures(found, measures) == got
        for one in got.values():
            assert one.low < one.value < one.high
        widths.append(got["area"].high - got["area"].low)
    assert widths[1] < widths[0] / 2
