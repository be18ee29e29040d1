"""Promises: the eigenbasis is orthonormal and holds the sampled rows; cutting it loses the least energy, also where
only the leading space is computed, which is that of the full decomposition."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from influence_engine.curvature import fit_eigenbasis
from influence_engine.curvature.eigenbasis import decomposed_size
from influence_engine.curvature.row_matrix import BlockRows, StackedRows


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


def falling(rows: int, width: int, *, rank: int | None = None) -> torch.Tensor:
    """Rows whose singular values fall like those of gradients: quickly at first, then with a long tail."""
    generator = torch.Generator().manual_seed(rows)
    small = rank or min(rows, width)
    left = torch.linalg.qr(torch.randn(rows, small, generator=generator))[0]
    right = torch.linalg.qr(torch.randn(width, small, generator=generator))[0]
    return (left / torch.arange(1, small + 1)) @ right.T


def test_where_more_rows_than_coordinates_are_decomposed_the_basis_is_the_same() -> None:
    matrix = falling(90, 40)
    few, many = fit_eigenbasis([matrix], 9), fit_eigenbasis([matrix.T.contiguous()], 9)
    values = torch.linalg.svdvals(matrix).square()
    for fitted in (few, many):
        assert abs(fitted.energy_kept - float(values[:9].sum() / values.sum())) < 1e-6
    exact = torch.linalg.svd(matrix, full_matrices=False)[2][:9].T
    torch.testing.assert_close(few.vectors @ few.vectors.T, exact @ exact.T, atol=1e-4, rtol=0)


@pytest.mark.parametrize("shape", [(1100, 1300), (1300, 1100)])
def test_a_leading_space_that_is_multiplied_for_has_the_energy_of_a_full_decomposition(shape: tuple[int, int]) -> None:
    matrix, kept = falling(*shape), 60
    assert not decomposed_size(*shape, kept)
    fitted = fit_eigenbasis(StackedRows([BlockRows([matrix[:500], matrix[500:700]]), BlockRows([matrix[700:]])]), kept)
    assert fitted.vectors.shape == (shape[1], kept)
    torch.testing.assert_close(fitted.vectors.T @ fitted.vectors, torch.eye(kept), atol=1e-5, rtol=0)
    _, values, exact = torch.linalg.svd(matrix, full_matrices=False)
    squares = values.square()
    within = float((matrix @ fitted.vectors).square().sum() / squares.sum())
    assert abs(fitted.energy_kept - within) < 1e-5
    missed = float(squares[kept:].sum() / squares.sum())
    assert 1 - within < 1.1 * missed
    # The strong directions, which influence is of, are in it nearly whole.
    strong = exact[: kept // 2]
    assert float((strong @ fitted.vectors).square().sum(1).min()) > 0.999


def test_a_leading_space_has_no_directions_that_are_only_rounding() -> None:
    fitted = fit_eigenbasis([falling(1100, 1200, rank=20)], 60)
    assert fitted.vectors.shape == (1200, 20)
    assert fitted.energy_kept > 1 - 1e-6
