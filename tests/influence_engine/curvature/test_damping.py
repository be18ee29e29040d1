"""Promises: how far the weights have moved says how long gradient flow took, and says so only where it can."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from influence_engine.curvature import LayerPreconditioner, displacement_damping


def preconditioner_of(row: Tensor, column: Tensor) -> dict[str, LayerPreconditioner]:
    return {"layer": LayerPreconditioner(row, column)}


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 5), st.integers(1, 5), st.floats(0.01, 100), st.integers(0, 9_999))
def test_on_a_linear_path_it_is_one_over_the_time_under_any_preconditioner(
    d0: int, d1: int, time: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    start, gradient = (torch.randn(d0, d1, generator=generator, dtype=torch.float64) for _ in range(2))
    row, column = (torch.rand(size, generator=generator, dtype=torch.float64) + 0.1 for size in (d0, d1))
    inverse = torch.outer(row, column).pow(2)  # D^-1
    end = start + 1000 - time * inverse * gradient
    fall = time * float((gradient * inverse * gradient).sum())
    found = displacement_damping(fall, {"layer": end}, {"layer": start + 1000}, preconditioner_of(row, column))
    assert found == pytest.approx(1 / time, rel=1e-6)


@settings(max_examples=100, deadline=None)
@given(st.integers(2, 9), st.floats(0.01, 10), st.integers(0, 9_999))
def test_along_the_trajectory_into_a_valley_it_is_never_less(size: int, time: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    curvature = torch.rand(size, generator=generator, dtype=torch.float64) * 3
    start = torch.randn(1, size, generator=generator, dtype=torch.float64) + 2
    end = start * (-time * curvature).exp()
    fall = float((curvature * (start**2 - end**2)).sum() / 2)
    ones = preconditioner_of(torch.ones(1), torch.ones(size))
    # Beside a layer that stays, since this one's weights may turn away from where they started.
    stays = torch.ones(1, 100 * size)
    found = displacement_damping(
        fall,
        {"layer": end, "other": stays},
        {"layer": start, "other": stays},
        ones | {"other": LayerPreconditioner(torch.ones(1), torch.ones(100 * size))},
    )
    if torch.cosine_similarity(start.flatten(), end.flatten(), dim=0) > 0.5:
        assert found is not None
        assert found >= (1 - 1e-9) / time


def test_a_head_that_was_drawn_anew_is_no_part_of_the_way() -> None:
    generator = torch.Generator().manual_seed(0)
    body, head, other = (torch.randn(20, 20, generator=generator) for _ in range(3))
    preconditioner = {name: LayerPreconditioner(torch.ones(20), torch.ones(20)) for name in ("body", "head")}
    found = displacement_damping(1.0, {"body": body + 0.1, "head": head}, {"body": body, "head": other}, preconditioner)
    assert found == pytest.approx(1 / (400 * 0.01))


@pytest.mark.parametrize(
    ("fall", "start"),
    [
        (-0.1, {"layer": torch.ones(2, 2)}),
        (0.1, {"layer": torch.full((2, 2), 2.0)}),
        (0.1, {}),
        (0.1, {"layer": torch.ones(3, 3)}),
    ],
    ids=["the loss rose", "nothing moved", "no such layer", "another shape"],
)
def test_where_the_way_says_nothing_there_is_none(fall: float, start: dict[str, Tensor]) -> None:
    weights = {"layer": torch.full((2, 2), 2.0)}
    assert displacement_damping(fall, weights, start, preconditioner_of(torch.ones(2), torch.ones(2))) is None


def test_adapters_start_at_nothing() -> None:
    """The second factor of an adapter is zero before its training, and has no direction to compare."""
    weights, start = {"layer": torch.full((2, 2), 0.5)}, {"layer": torch.zeros(2, 2)}
    found = displacement_damping(2.0, weights, start, preconditioner_of(torch.ones(2), torch.ones(2)))
    assert found == pytest.approx(2.0)
