"""Promise: directions and curvatures at the outputs add up to the loss's second derivative; samples average to it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from influence_engine.curvature import exact_output_curvature, sampled_output_gradients
from influence_engine.errors import SettingsError


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


def seeded(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(number) for number in range(count)]


def test_drawn_labels_average_to_the_curvature(vector_task: Any) -> None:
    outputs = torch.tensor([[0.5, -0.3, 0.1]])
    drawn = sampled_output_gradients(
        vector_task, outputs, {"labels": torch.tensor([0])}, draws=20000, generators=seeded(1)
    )
    rebuilt = torch.einsum("rbi,rbj->bij", drawn, drawn)
    torch.testing.assert_close(rebuilt.double(), softmax_curvature(outputs), rtol=0.05, atol=0.01)


def test_draws_are_the_same_for_the_same_seed(vector_task: Any) -> None:
    outputs, batch = torch.randn(5, 3), {"labels": torch.zeros(5, dtype=torch.long)}
    first, second = (
        sampled_output_gradients(vector_task, outputs, batch, draws=3, generators=seeded(5)) for _ in range(2)
    )
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


class Sequences:
    """Losses over positions ``[B, T, C]``, in the forms that people write."""

    def __init__(self, form: str) -> None:
        self.form = form

    def loss(self, outputs: Tensor, batch: Any) -> Tensor:
        labels, weight = batch["labels"], torch.linspace(0.5, 2, outputs.shape[-1], dtype=outputs.dtype)
        if self.form == "shifted":
            outputs, labels = outputs[:, :-1], labels[:, 1:]
        smoothing = 0.2 if self.form == "smoothed" else 0.0
        losses = functional.cross_entropy(
            outputs.transpose(1, 2),
            labels,
            ignore_index=-100,
            reduction="none",
            label_smoothing=smoothing,
            weight=weight if self.form == "weighted by label" else None,
        )
        if self.form == "mean over positions":
            return losses.sum(1) / (labels >= 0).sum(1)
        return losses.sum(1)


class Elementwise:
    def loss(self, outputs: Tensor, batch: Any) -> Tensor:
        return functional.binary_cross_entropy_with_logits(outputs, batch["labels"], reduction="none").sum(-1)


class Ranking:
    """Couples all outputs: neither a cross-entropy of them nor a sum over them."""

    def loss(self, outputs: Tensor, batch: Any) -> Tensor:
        return outputs.square().sum(-1).square()


def second_derivative(task: Any, outputs: Tensor, batch: Any) -> Tensor:
    """Of the one example's loss, ``[n, n]``."""

    def loss(flat: Tensor) -> Tensor:
        return task.loss(flat.view_as(outputs), batch).sum()

    found: Any = torch.autograd.functional.hessian(loss, outputs.double().flatten())
    return found


FORMS = ("plain", "shifted", "smoothed", "weighted by label", "mean over positions")


@pytest.mark.parametrize("task", [*map(Sequences, FORMS), Elementwise()], ids=[*FORMS, "elementwise"])
def test_what_is_drawn_averages_to_the_second_derivative_of_any_form(task: Any) -> None:
    generator = torch.Generator().manual_seed(3)
    if isinstance(task, Sequences):
        outputs = torch.randn(1, 4, 3, generator=generator)
        batch: Any = {"labels": torch.tensor([[2, -100, 0, 1]])}
    else:
        outputs, batch = torch.randn(1, 6, generator=generator), {"labels": torch.ones(1, 6)}

    drawn = sampled_output_gradients(task, outputs, batch, draws=20000, generators=seeded(1)).flatten(2)[:, 0]

    expected = second_derivative(task, outputs, batch)
    torch.testing.assert_close((drawn.T @ drawn).double(), expected, rtol=0.1, atol=0.02 * float(expected.max()))


def test_a_loss_of_another_form_asks_for_a_way_to_sample() -> None:
    with pytest.raises(SettingsError, match=r"sample\(outputs, batch, generator\)"):
        sampled_output_gradients(
            Ranking(),  # type: ignore[arg-type]
            torch.randn(2, 20),
            {},
            draws=1,
            generators=seeded(2),
        )


def test_a_task_that_samples_is_given_the_generator_of_each_example() -> None:
    class Sampling(Sequences):
        def sample(self, outputs: Tensor, batch: Any, generator: torch.Generator) -> Any:
            rows = outputs.softmax(-1).flatten(0, 1)
            return {"labels": torch.multinomial(rows, 1, generator=generator).view(outputs.shape[:2])}

    outputs, batch = torch.randn(3, 4, 5), {"labels": torch.zeros(3, 4, dtype=torch.long)}
    together = sampled_output_gradients(Sampling("plain"), outputs, batch, draws=2, generators=seeded(3))  # type: ignore[arg-type]
    last = [torch.Generator().manual_seed(2)]
    alone = sampled_output_gradients(
        Sampling("plain"),  # type: ignore[arg-type]
        outputs[2:],
        {"labels": batch["labels"][2:]},
        draws=2,
        generators=last,
    )
    torch.testing.assert_close(together[:, 2:], alone)
