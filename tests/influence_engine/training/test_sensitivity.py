"""Promise: where later gradients stay as they are, final weights move by what the sums say, to rounding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from influence_engine.training.optimizers import SGD, AdamW, Optimizer
from influence_engine.training.sensitivity import ImpulseResponse, sensitivity_of

STEPS = 9
OPTIMIZERS: dict[str, Optimizer] = {
    "adamw": AdamW(betas=(0.8, 0.95), epsilon=1e-3),
    "sgd": SGD(momentum=0.7),
    "plain sgd": SGD(momentum=0.0),
}


def trained(optimizer: Any, gradients: list[Tensor], rates: list[float]) -> tuple[Tensor, list[Any]]:
    """The final weights, and the optimiser's states from the first to the last."""
    parameters = {"w": torch.ones(5, dtype=torch.float64)}
    states = [optimizer.initial_state(parameters)]
    for number, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), 1):
        parameters, state = optimizer.step(parameters, states[-1], {"w": gradient}, rate, number)
        states.append(state)
    return parameters["w"], states


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_sums_are_the_derivatives_of_the_final_weights_by_each_gradient(name: str) -> None:
    optimizer = OPTIMIZERS[name]
    generator = torch.Generator().manual_seed(0)
    gradients = [torch.randn(5, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(STEPS)]
    rates = [0.1 + 0.02 * number for number in range(STEPS)]
    final, states = trained(optimizer, gradients, rates)
    expected = torch.autograd.grad(final.sum(), gradients)
    states = [{kind: {"w": tensors["w"].detach()} for kind, tensors in state.items()} for state in states]

    sensitivity = sensitivity_of(optimizer, {"w": final.detach()})
    for number in range(STEPS, 0, -1):
        direct, late, gradient = sensitivity.backward(number, rates[number - 1], states[number - 1], states[number])
        torch.testing.assert_close(gradient["w"], gradients[number - 1].detach())
        moved = direct["w"] if late is None else direct["w"] + late["w"]
        torch.testing.assert_close(-moved, expected[number - 1], rtol=1e-9, atol=1e-12)


def test_sums_that_are_restored_go_on_as_if_never_interrupted() -> None:
    optimizer = OPTIMIZERS["adamw"]
    generator = torch.Generator().manual_seed(1)
    gradients = [torch.randn(5, generator=generator, dtype=torch.float64) for _ in range(STEPS)]
    _, states = trained(optimizer, gradients, [0.1] * STEPS)
    whole = sensitivity_of(optimizer, {"w": gradients[0]})
    for number in range(STEPS, 4, -1):
        whole.backward(number, 0.1, states[number - 1], states[number])
    again = sensitivity_of(optimizer, {"w": gradients[0]})
    again.restore(whole.tensors())
    for one, other in zip(
        whole.backward(4, 0.1, states[3], states[4]), again.backward(4, 0.1, states[3], states[4]), strict=True
    ):
        assert one is not None
        assert other is not None
        assert torch.equal(one["w"], other["w"])


def test_the_totals_are_the_sums_over_all_later_steps() -> None:
    response = ImpulseResponse(torch.tensor([0.1, 0.3, 0.2, 0.4], dtype=torch.float64), 0.5)
    assert response.totals().tolist() == pytest.approx([0.35, 0.5, 0.4, 0.4])
