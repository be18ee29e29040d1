"""Promise: directions and curvatures at the outputs add up to the loss's second derivative; samples average to it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from influence_engine.curvature import exact_output_curvature, sampled_output_gradients


def softmax_curvature(outputs: Tensor) -> Tensor:
    p = outputs.double().softmax(-1)
    return torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)


@settings(max_examples=30, deadline=None)
@given(batch=st.integers(1, 5), classes=st.integers(2, 6), scale=st.sampled_from([0.1, 1.0, 10.0, 40.0]))
def test_cross_entropy_decomposes_exactly(batch: int, classes: int, scale: float) -> None:
    from torch.nn import functional

    class Plain:
        def loss(self, outputs: Tensor, batch: Any) -> Tensor:
            return functional.cross_entropy(outputs, batch["labels"], reduction="none")

    outputs = torch.randn(batch, classes) * scale
    labels = torch.randint(0, classes, (batch,))
    found = exact_output_curvature(Plain(), outputs, {"labels": labels})  # type: ignore[arg-type]
    assert len(found.directions) <= classes - 1
    rebuilt = torch.einsum("rb,rbi,rbj->bij", found.curvatures, found.directions, found.directions)
    torch.testing.assert_close(rebuilt.double(), softmax_curvature(outputs), rtol=1e-4, atol=1e-6)
    expected = outputs.softmax(-1) - functional.one_hot(labels, classes)
    torch.testing.assert_close(found.loss_gradient, expected, rtol=1e-4, atol=1e-6)
    if found.coefficients is not None:
        summed = (found.coefficients.unsqueeze(-1) * found.directions).sum(0)
        torch.testing.assert_close(summed, expected, rtol=1e-3, atol=1e-6)


def test_a_binary_classification_needs_a_single_backward_pass(vector_task: Any) -> None:
    found = exact_output_curvature(vector_task, torch.randn(4, 2), {"labels": torch.tensor([0, 1, 1, 0])})
    assert found.directions.shape == (1, 4, 2)
    assert found.coefficients is not None


def test_squared_error_has_the_identity_as_curvature() -> None:
    class SquaredError:
        def loss(self, outputs: Tensor, batch: Any) -> Tensor:
            return (outputs - batch["labels"]).pow(2).sum(1) / 2

    outputs = torch.randn(3, 4)
    found = exact_output_curvature(SquaredError(), outputs, {"labels": torch.randn(3, 4)})  # type: ignore[arg-type]
    rebuilt = torch.einsum("rb,rbi,rbj->bij", found.curvatures, found.directions, found.directions)
    torch.testing.assert_close(rebuilt, torch.eye(4).expand(3, 4, 4))


def test_drawn_labels_average_to_the_curvature(vector_task: Any) -> None:
    outputs = torch.tensor([[0.5, -0.3, 0.1]])
    drawn = sampled_output_gradients(vector_task, outputs, {"labels": torch.tensor([0])}, draws=20000, seed=0)
    rebuilt = torch.einsum("rbi,rbj->bij", drawn, drawn)
    torch.testing.assert_close(rebuilt.double(), softmax_curvature(outputs), rtol=0.05, atol=0.01)


def test_draws_are_the_same_for_the_same_seed(vector_task: Any) -> None:
    outputs, batch = torch.randn(5, 3), {"labels": torch.zeros(5, dtype=torch.long)}
    first, second = (sampled_output_gradients(vector_task, outputs, batch, draws=3, seed=7) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("epsilon", [1e-8, 1e-3])
def test_a_rank_one_second_moment_gives_the_exact_preconditioner(epsilon: float) -> None:
    from influence_engine.curvature import adam_preconditioner
    from influence_engine.gradients import track

    model = nn.Linear(4, 3)
    row, column = torch.rand(3) + 0.1, torch.rand(5) + 0.1
    moments = row[:, None] * column - epsilon**2
    preconditioner = adam_preconditioner(track(model), {"weight": moments[:, :4], "bias": moments[:, 4]}, epsilon)[""]
    expected = (moments + epsilon**2).sqrt().rsqrt()
    torch.testing.assert_close(preconditioner.row[:, None] * preconditioner.column, expected, rtol=1e-4, atol=1e-5)
