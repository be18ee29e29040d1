"""Promise: per-example gradients of every supported kind of layer, and all that is computed from them, equal a loop of
plain autograd, over shapes, dtypes and padding."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from influence_engine.gradients import IndexedGradient, LayerGradient, tracing, track
from influence_engine.gradients.coordinates import LayerProjection
from influence_engine.gradients.layers import KINDS
from influence_engine.tasks import Batch
from tests.influence_engine.gradients.layer_kinds import (
    MODULES,
    SEEDS,
    Drawn,
    WeighedOutputs,
    autograd_of_one,
    drawn_inputs,
    randomised,
)

TOLERANCES = {
    torch.float64: 1e-9,  # rounding stays far below it, whatever amplifies it; no mistake does
    torch.float32: 1e-4,  # a few hundred times its rounding: a normalisation of two like numbers amplifies it so
    torch.float16: 8 * torch.finfo(torch.float16).eps,  # both sides round their factors and a sum of a few terms
    torch.bfloat16: 8 * torch.finfo(torch.bfloat16).eps,
}
"""Of a layer's largest gradient in the batch, or of one: inputs and weights of outputs are numbers of that size."""

AROUND = ("nothing", "a layer below", "a head", "itself")


class Around(nn.Module):
    """The layer, with other trained layers about it that take the last axis; or the layer twice."""

    def __init__(self, one: Drawn, around: str, width: int, seed: int) -> None:
        super().__init__()
        self.layer = one.module
        self.below = randomised(nn.Linear(one.shape[-1], one.shape[-1]), seed) if around == "a layer below" else None
        self.head = randomised(nn.Linear(width, 2), seed) if around == "a head" else None
        self.twice = around == "itself"
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        outputs = self.layer(x if self.below is None else self.below(x))
        if self.head is not None:
            return self.head(outputs.tanh())
        if self.twice:
            other = x.flip(-1) if x.dim() > 1 else x
            return outputs + self.layer(other).tanh()
        return outputs


def traced(model: nn.Module, batch: Batch) -> dict[str, LayerGradient]:
    """Gradients by layer name."""
    task = WeighedOutputs()
    with tracing(model, task, track(model).layers, batch) as trace:
        return trace.layer_gradients(task.loss(trace.outputs, trace.batch))


def assert_gradients_are_those_of(
    model: nn.Module, batch: Batch, alone: list[Batch], dtype: torch.dtype, *, single: bool
) -> None:
    found = traced(model, batch)
    tolerance = TOLERANCES[torch.float32 if single and dtype == torch.float64 else dtype]
    for layer in track(model).layers:
        wanted = torch.stack([layer.matrix(autograd_of_one(model, example)) for example in alone])
        assert wanted.shape[1:] == layer.shape
        dense, bounds = found[layer.name].dense(), found[layer.name].bounds()
        largest = wanted.abs().amax((1, 2)).double()
        near = tolerance * max(1.0, float(largest.max()))
        torch.testing.assert_close(dense, wanted, rtol=0, atol=near)
        assert bool((bounds >= largest - near).all())
        assert bool(torch.isfinite(bounds).all())


def test_every_supported_kind_of_layer_has_its_properties_tested() -> None:
    assert MODULES.keys() == KINDS.keys()


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None)
@given(st.data())
def test_gradients_equal_a_loop_of_autograd_over_shapes_and_dtypes(kind: str, data: st.DataObject) -> None:
    one = data.draw(MODULES[kind])
    assert [name for name, known in KINDS.items() if known.fits(one.module)] == [kind]
    dtype = data.draw(st.sampled_from(list(TOLERANCES)))
    one.module.to(dtype)
    batch, alone = data.draw(drawn_inputs(one, dtype, sizes_differ=False))
    model: nn.Module = one.module
    if dtype.itemsize > 2:  # else it is the other layers' rounding that is seen
        around = data.draw(st.sampled_from(AROUND).filter(lambda around: around != "a layer below" or not one.rows))
        model = Around(one, around, batch["weights"].shape[-1], data.draw(SEEDS)).to(dtype)
        if around == "a head":  # each of its outputs has the weight of the layer's first there
            for example in (batch, *alone):
                example["weights"] = example["weights"][..., :1]
    assert_gradients_are_those_of(model, batch, alone, dtype, single=one.single)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=30, deadline=None)
@given(st.data())
def test_gradients_of_a_padded_batch_are_those_of_each_example_alone(kind: str, data: st.DataObject) -> None:
    one = data.draw(MODULES[kind])
    dtype = data.draw(st.sampled_from(list(TOLERANCES)))
    one.module.to(dtype)
    batch, alone = data.draw(drawn_inputs(one, dtype, sizes_differ=True))
    assert_gradients_are_those_of(one.module, batch, alone, dtype, single=one.single)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=20, deadline=None)
@given(st.data())
def test_every_contraction_of_the_factors_equals_that_of_the_dense_gradient(kind: str, data: st.DataObject) -> None:
    one = data.draw(MODULES[kind])
    one.module.double()
    batch, _ = data.draw(drawn_inputs(one, torch.float64, sizes_differ=True))
    (gradient,) = traced(one.module, batch).values()
    dense = gradient.dense()
    _, d0, d1 = dense.shape
    generator = torch.Generator().manual_seed(data.draw(SEEDS))

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    p0, p1, matrix, row, column = drawn(d0, 2), drawn(d1, 3), drawn(d0, d1), drawn(d0), drawn(d1)
    torch.testing.assert_close(gradient.project(p0, p1), p0.T @ dense @ p1)
    torch.testing.assert_close(gradient.inner(matrix), (dense * matrix).sum((1, 2)))
    torch.testing.assert_close(gradient.squared_norms(), dense.pow(2).sum((1, 2)))
    rows, columns, touched = gradient.squares()
    torch.testing.assert_close(rows, dense.pow(2).sum((0, 2)))
    torch.testing.assert_close(columns, dense.pow(2).sum((0, 1)))
    assert touched >= int((dense != 0).any(2).sum())
    torch.testing.assert_close(gradient.scale(row, column).dense(), dense * row[:, None] * column)
    weights = drawn(len(dense))
    torch.testing.assert_close(gradient.times(weights).dense(), dense * weights[:, None, None])
    torch.testing.assert_close(gradient.total(), dense.sum(0))
    weights[-1] = torch.nan
    assert torch.equal(gradient.times(weights).bounds().isfinite(), weights.isfinite())

    left, right = gradient.covariances()
    whole = torch.einsum("bij,bkj->ik", dense, dense)
    table = isinstance(gradient, IndexedGradient)  # only the diagonal of its long side
    torch.testing.assert_close(left, whole.diagonal() if table else whole)
    torch.testing.assert_close(right, torch.einsum("bij,bik->jk", dense, dense))

    kept = torch.randperm(d0, generator=generator)[:2]
    coordinates = LayerProjection(kept if table else p0, p1)
    basis = torch.eye(d0, dtype=torch.float64)[:, kept] if table else p0
    torch.testing.assert_close(coordinates.project(gradient), (basis.T @ dense @ p1).flatten(1))
    (products,) = coordinates.project_hadamard(gradient, [matrix])
    torch.testing.assert_close(products, (basis.T @ (dense * matrix) @ p1).flatten(1))
