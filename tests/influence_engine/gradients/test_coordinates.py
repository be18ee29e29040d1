"""Promise: a layer's coordinates of gradients, multiplied by a matrix or not, are those of the materialised gradients
between its two bases, whatever the shapes, the form of the gradient, and the order of the products."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from influence_engine.gradients import DenseGradient, FactoredGradient, IndexedGradient, LayerGradient
from influence_engine.gradients.coordinates import EnergyFit, LayerProjection

WIDTHS = st.integers(1, 40)


@st.composite
def cases(draw: st.DrawFn) -> tuple[LayerGradient, LayerProjection, Tensor]:
    """A gradient, two bases, and the first of them as a matrix ``[d0, r0]``."""
    batch, positions, d0, d1 = (draw(st.integers(1, 30)), draw(st.integers(1, 9)), draw(WIDTHS), draw(WIDTHS))
    r0, r1 = draw(st.integers(1, d0)), draw(st.integers(1, d1))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    left, right = drawn(d0, r0), drawn(d1, r1)
    match draw(st.sampled_from(["factored", "dense", "indexed"])):
        case "factored":
            return (
                FactoredGradient(drawn(batch, positions, d0), drawn(batch, positions, d1)),
                LayerProjection(left, right),
                left,
            )
        case "dense":
            return DenseGradient(drawn(batch, d0, d1)), LayerProjection(left, right), left
        case _:
            rows = torch.randint(d0, (batch, positions), generator=generator)
            kept = torch.randperm(d0, generator=generator)[:r0]
            chosen = torch.eye(d0, dtype=torch.float64)[:, kept]
            return IndexedGradient(rows, drawn(batch, positions, d1), d0), LayerProjection(kept, right), chosen


@settings(max_examples=200, deadline=None)
@given(cases(), st.integers(1, 3))
def test_coordinates_are_those_of_materialised_gradients(
    case: tuple[LayerGradient, LayerProjection, Tensor], kinds: int
) -> None:
    gradient, projection, left = case
    dense, right = gradient.dense(), projection.right
    matrices = [torch.randn(dense.shape[1:], dtype=torch.float64) for _ in range(kinds)]

    def between(matrix: Tensor) -> Tensor:
        return torch.einsum("bij,ia,jc->bac", matrix, left, right)

    torch.testing.assert_close(projection.project(gradient), between(dense).flatten(1))
    torch.testing.assert_close(projection.project_matrices(dense), between(dense))
    products = projection.project_hadamard(gradient, matrices)
    assert len(products) == kinds
    for found, matrix in zip(products, matrices, strict=True):
        torch.testing.assert_close(found, between(dense * matrix).flatten(1))


@settings(max_examples=100, deadline=None)
@given(cases())
def test_lifting_coordinates_is_the_transpose_of_projecting(
    case: tuple[LayerGradient, LayerProjection, Tensor],
) -> None:
    gradient, projection, left = case
    dense = gradient.dense()
    inner = torch.randn(len(dense), left.shape[1], projection.right.shape[1], dtype=torch.float64)
    lifted = projection.lift(inner, dense.shape[1])
    torch.testing.assert_close((lifted * dense).sum((1, 2)), (inner * projection.project_matrices(dense)).sum((1, 2)))


@settings(max_examples=100, deadline=None)
@given(st.integers(2, 40), st.integers(1, 12), st.integers(0, 10_000))
def test_directions_that_no_gradient_has_take_no_others_place_whatever_rounding_leaves_of_them(
    width: int, inside: int, seed: int
) -> None:
    """As those of a classifier's last layer, whose gradients add up to zero over its classes."""
    inside = min(inside, width - 1)
    generator = torch.Generator().manual_seed(seed)
    spanned, _ = torch.linalg.qr(torch.randn(width, inside, generator=generator))
    fit = EnergyFit()
    for _ in range(5):
        left = torch.randn(32, 3, inside, generator=generator) @ spanned.T
        fit.add("layer", FactoredGradient(left, torch.randn(32, 3, 6, generator=generator)))
        # One that there is no room for, of much less energy.
        weak = 1e-6 * torch.randn(32, 3, 60, generator=generator)
        fit.add("weak", FactoredGradient(weak, torch.randn(32, 3, 60, generator=generator)))
    found = fit.projections(budget=3_000)["layer"]
    assert (found.left.shape[1], found.right.shape[1]) == (inside, 6)
    assert float((spanned - found.left @ (found.left.T @ spanned)).norm()) < 1e-3
