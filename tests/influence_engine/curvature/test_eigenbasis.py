"""Promise: the eigenbasis is orthonormal, ordered, and holds the sampled rows; cutting it loses the least energy."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from influence_engine.curvature import fit_eigenbasis


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(2, 12), width=st.integers(12, 40), spread=st.sampled_from([1.0, 30.0, 1000.0]))
def test_all_directions_hold_the_rows(rows: int, width: int, spread: float) -> None:
    matrix = torch.randn(rows, width) * torch.logspace(0, -1, rows).pow(torch.log10(torch.tensor(spread)))[:, None]
    fitted = fit_eigenbasis([matrix], rows)
    k = fitted.vectors.shape[1]
    torch.testing.assert_close(fitted.vectors.T @ fitted.vectors, torch.eye(k), atol=1e-5, rtol=0)
    assert float((matrix - matrix @ fitted.vectors @ fitted.vectors.T).norm() / matrix.norm()) < 2e-3


def test_cut_directions_keep_the_most_energy_and_say_how_much() -> None:
    matrix = torch.randn(30, 50, dtype=torch.float64) * torch.logspace(0, -2, 30, dtype=torch.float64)[:, None]
    fitted = fit_eigenbasis([matrix], 7)
    values = torch.linalg.svdvals(matrix).square()
    assert fitted.vectors.shape == (50, 7)
    assert abs(fitted.energy_kept - float(values[:7].sum() / values.sum())) < 1e-9
    kept = (matrix @ fitted.vectors).square().sum() / matrix.square().sum()
    assert abs(fitted.energy_kept - float(kept)) < 1e-9


def test_repeated_rows_give_only_the_directions_that_are_there() -> None:
    row = torch.randn(1, 20)
    assert fit_eigenbasis([row.repeat(5, 1)], 5).vectors.shape == (20, 1)


def test_rows_in_blocks_give_the_same_basis() -> None:
    matrix = torch.randn(30, 50, dtype=torch.float64)
    whole, parts = fit_eigenbasis([matrix], 7), fit_eigenbasis([matrix[:4], matrix[4:11], matrix[11:]], 7)
    torch.testing.assert_close(parts.vectors.abs(), whole.vectors.abs())
    assert abs(parts.energy_kept - whole.energy_kept) < 1e-12
