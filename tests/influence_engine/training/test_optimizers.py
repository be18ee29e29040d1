"""Optimiser steps equal the textbook's and torch's, change nothing in place, and can be differentiated."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from influence_engine.errors import RecordError
from influence_engine.training.clipping import clipped, clipping_adjoint, gradient_norm
from influence_engine.training.optimizers import (
    SGD,
    AdamW,
    Optimizer,
    SmoothAdamW,
    optimizer_for,
    optimizer_from_description,
)
from influence_engine.training.settings import FinetuneSettings

STEPS = 6


def start() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "matrix": torch.randn(4, 3, generator=generator, dtype=torch.float64),
        "bias": torch.randn(3, generator=generator, dtype=torch.float64),
    }


def gradients_at(number: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(100 + number)
    return {
        "matrix": torch.randn(4, 3, generator=generator, dtype=torch.float64),
        "bias": torch.randn(3, generator=generator, dtype=torch.float64),
    }


def rate(number: int) -> float:
    return 0.1 / number


def ran(optimizer: Optimizer) -> dict[str, Tensor]:
    parameters = start()
    state = optimizer.initial_state(parameters)
    for number in range(1, STEPS + 1):
        parameters, state = optimizer.step(parameters, state, gradients_at(number), rate(number), number)
    return parameters


def ran_by_torch(optimizer: torch.optim.Optimizer, parameters: dict[str, nn.Parameter]) -> None:
    for number in range(1, STEPS + 1):
        for name, gradient in gradients_at(number).items():
            parameters[name].grad = gradient
        for group in optimizer.param_groups:
            group["lr"] = rate(number)
        optimizer.step()


def test_adamw_is_the_formula_number_by_number() -> None:
    optimizer = AdamW(betas=(0.8, 0.95), epsilon=0.05, weight_decay={"matrix": 0.1})
    expected = {name: value.tolist() for name, value in start().items()}
    flat = {name: torch.tensor(value).reshape(-1).tolist() for name, value in expected.items()}
    for name, values in flat.items():
        decay = 0.1 if name == "matrix" else 0.0
        for position, theta in enumerate(values):
            m = v = 0.0
            for number in range(1, STEPS + 1):
                g = float(gradients_at(number)[name].reshape(-1)[position])
                m = 0.8 * m + 0.2 * g
                v = 0.95 * v + 0.05 * g * g
                m_hat, v_hat = m / (1 - 0.8**number), v / (1 - 0.95**number)
                theta = theta * (1 - rate(number) * decay) - rate(number) * m_hat / math.sqrt(v_hat + 0.05**2)
            values[position] = theta

    result = ran(optimizer)

    for name, values in flat.items():
        assert result[name].reshape(-1).tolist() == pytest.approx(values, rel=1e-6)


def test_adamw_agrees_with_torch_where_epsilon_is_negligible() -> None:
    parameters = {name: nn.Parameter(value) for name, value in start().items()}
    ran_by_torch(torch.optim.AdamW(parameters.values(), betas=(0.9, 0.99), eps=1e-12, weight_decay=0.1), parameters)

    result = ran(AdamW(betas=(0.9, 0.99), epsilon=1e-12, weight_decay={"matrix": 0.1, "bias": 0.1}))

    for name, value in parameters.items():
        torch.testing.assert_close(result[name], value.detach(), rtol=1e-9, atol=1e-9)


def test_sgd_agrees_with_torch() -> None:
    parameters = {name: nn.Parameter(value) for name, value in start().items()}
    ran_by_torch(torch.optim.SGD(parameters.values(), lr=1.0, momentum=0.7), parameters)

    result = ran(SGD(momentum=0.7))

    for name, value in parameters.items():
        torch.testing.assert_close(result[name], value.detach(), rtol=1e-12, atol=1e-12)


def test_sgd_decays_apart_from_the_gradient() -> None:
    parameters = {"w": torch.tensor([2.0])}
    optimizer = SGD(momentum=0.0, weight_decay={"w": 0.5})

    result, _ = optimizer.step(parameters, optimizer.initial_state(parameters), {"w": torch.tensor([1.0])}, 0.1, 1)

    assert float(result["w"]) == pytest.approx(2.0 * (1 - 0.05) - 0.1)


def test_smooth_adamw_in_torch_is_the_pure_step_bit_for_bit() -> None:
    parameters = {name: nn.Parameter(value) for name, value in start().items()}
    groups = [
        {"params": [parameters["matrix"]], "weight_decay": 0.1},
        {"params": [parameters["bias"]], "weight_decay": 0.0},
    ]
    ran_by_torch(SmoothAdamW(groups, betas=(0.8, 0.95), epsilon=1e-3), parameters)

    result = ran(AdamW(betas=(0.8, 0.95), epsilon=1e-3, weight_decay={"matrix": 0.1}))

    for name, value in parameters.items():
        assert torch.equal(result[name], value.detach())


def test_smooth_adamw_returns_the_loss_of_a_closure_and_skips_what_is_frozen() -> None:
    trained, frozen = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2), requires_grad=False)
    optimizer = SmoothAdamW([trained, frozen], lr=0.1, weight_decay=0.5)

    def closure() -> float:
        loss = trained.square().sum()
        loss.backward()
        return float(loss.detach())

    assert optimizer.step(closure) == 2.0
    assert not torch.equal(trained.detach(), torch.ones(2))
    assert torch.equal(frozen.detach(), torch.ones(2))


def test_smooth_adamw_goes_on_from_a_saved_state() -> None:
    def steps(parameter: nn.Parameter, optimizer: SmoothAdamW, count: int) -> None:
        for _ in range(count):
            parameter.grad = parameter.detach() * 2
            optimizer.step()

    whole = nn.Parameter(torch.ones(3))
    steps(whole, SmoothAdamW([whole], lr=0.1), 5)

    part = nn.Parameter(torch.ones(3))
    first = SmoothAdamW([part], lr=0.1)
    steps(part, first, 2)
    second = SmoothAdamW([part], lr=0.1)
    second.load_state_dict(first.state_dict())
    steps(part, second, 3)

    assert torch.equal(whole.detach(), part.detach())


@pytest.mark.parametrize("optimizer", [AdamW(weight_decay={"matrix": 0.1}), SGD(weight_decay={"matrix": 0.1})])
def test_a_step_changes_nothing_in_place(optimizer: Optimizer) -> None:
    parameters, gradients = start(), gradients_at(1)
    state = optimizer.initial_state(parameters)
    before = [value.clone() for group in (parameters, gradients, *state.values()) for value in group.values()]

    optimizer.step(parameters, state, gradients, 0.1, 1)

    after = [value for group in (parameters, gradients, *state.values()) for value in group.values()]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


@pytest.mark.parametrize(
    "optimizer", [AdamW(epsilon=0.1, weight_decay={"w": 0.1}), SGD(momentum=0.9, weight_decay={"w": 0.1})]
)
def test_two_steps_with_clipping_have_the_derivative_of_finite_differences(optimizer: Optimizer) -> None:
    def end(theta: Tensor, first: Tensor, second: Tensor) -> Tensor:
        parameters = {"w": theta}
        state = optimizer.initial_state(parameters)
        for number, gradient in enumerate((first, second), start=1):
            found, _ = clipped({"w": gradient * parameters["w"]}, 0.5)
            parameters, state = optimizer.step(parameters, state, found, 0.1, number)
        return parameters["w"]

    inputs = [torch.tensor(values, dtype=torch.float64, requires_grad=True) for values in ([1.0, -2], [0.5, 1], [3, 0])]

    assert torch.autograd.gradcheck(end, inputs)
    assert torch.autograd.gradgradcheck(end, inputs)


@pytest.mark.parametrize("longest", [None, 0.5, 100.0])
@pytest.mark.parametrize(
    "optimizer", [AdamW(epsilon=0.1, weight_decay={"matrix": 0.1}), SGD(momentum=0.9, weight_decay={"matrix": 0.1})]
)
def test_a_step_walked_back_by_formula_has_the_derivatives_of_autograd(
    optimizer: Optimizer, longest: float | None
) -> None:
    parameters, state = optimizer.step(start(), optimizer.initial_state(start()), gradients_at(1), 0.1, 1)
    gradients = gradients_at(2)
    leaves = [*parameters.values(), *(one for part in state.values() for one in part.values()), *gradients.values()]
    for leaf in leaves:
        leaf.requires_grad_()
    used, _ = clipped(gradients, longest)
    ends, end_state = optimizer.step(parameters, state, used, 0.05, 2)
    outputs = [*ends.values(), *(one for part in end_state.values() for one in part.values())]
    draw = torch.Generator().manual_seed(3)
    carried = [torch.randn(3, *one.shape, generator=draw, dtype=one.dtype) for one in outputs]
    expected = torch.autograd.grad(outputs, leaves, carried, is_grads_batched=True, materialize_grads=True)

    rest = iter([one.clone() for one in carried])
    by_parameters = {name: next(rest) for name in parameters}
    by_state = {kind: {name: next(rest) for name in part} for kind, part in state.items()}
    plain = {name: one.detach() for name, one in gradients.items()}
    before = {kind: {name: one.detach() for name, one in part.items()} for kind, part in state.items()}
    adjoint = optimizer.adjoint(before, {name: one.detach() for name, one in used.items()}, 0.05, 2)
    pulled = adjoint.pull_back(by_parameters, by_state)
    by_gradients = clipping_adjoint(pulled, plain, float(gradient_norm(plain)), longest)

    found = [*by_parameters.values(), *(one for part in by_state.values() for one in part.values())]
    for one, other in zip([*found, *by_gradients.values()], expected, strict=True):
        torch.testing.assert_close(one, other)


def test_a_gradient_of_zero_moves_nothing_and_has_a_finite_derivative() -> None:
    optimizer = AdamW(epsilon=1e-6)
    gradient = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    parameters = {"w": torch.ones(2, dtype=torch.float64)}

    result, _ = optimizer.step(parameters, optimizer.initial_state(parameters), {"w": gradient}, 0.1, 1)
    result["w"].sum().backward()

    assert torch.equal(result["w"].detach(), parameters["w"])
    assert gradient.grad is not None
    assert bool(gradient.grad.isfinite().all())


@pytest.mark.parametrize("longest", [0.5, 100.0])
def test_clipping_is_that_of_torch(longest: float) -> None:
    gradients = gradients_at(1)
    parameters = [nn.Parameter(value) for value in start().values()]
    for parameter, gradient in zip(parameters, gradients.values(), strict=True):
        parameter.grad = gradient.clone()
    norm = torch.nn.utils.clip_grad_norm_(parameters, longest)

    found, factor = clipped(gradients, longest)

    assert float(factor) == pytest.approx(min(1.0, longest / (float(norm) + 1e-6)))
    for parameter, gradient in zip(parameters, found.values(), strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(gradient, parameter.grad)


def test_without_a_longest_norm_nothing_is_clipped() -> None:
    gradients = gradients_at(1)

    assert clipped(gradients, None) == (gradients, torch.ones(()))


def test_biases_and_normalisation_do_not_decay() -> None:
    optimizer = optimizer_for(FinetuneSettings(weight_decay=0.1), start())

    assert optimizer.describe()["weight_decay"] == {"matrix": 0.1}


@pytest.mark.parametrize("optimizer", [AdamW((0.8, 0.9), 1e-4, {"a": 0.1}), SGD(0.5, {"a": 0.1})])
def test_a_description_makes_the_same_optimizer(optimizer: Optimizer) -> None:
    assert optimizer_from_description(optimizer.describe()) == optimizer


def test_an_optimizer_that_is_not_known_here_is_refused_by_name() -> None:
    with pytest.raises(RecordError, match="Lion"):
        optimizer_from_description({"type": "Lion"})
