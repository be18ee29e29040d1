"""Optimiser steps as pure, differentiable functions of parameters, state, gradients and learning rate.

Fine-tuning and re-execution run the steps without a graph; a replay differentiates them in reverse by their
``adjoint``, which the tests compare with autograd. AdamW has its epsilon inside the square root, so that a step is a
smooth function of the gradient where the gradient is zero (Engstrom et al. 2025, arXiv 2503.13751, which trains
smoothly in this way).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, overload

import torch
from torch import Tensor

from influence_engine.errors import RecordError
from influence_engine.training.settings import FinetuneSettings

Parameters = dict[str, Tensor]
"""Tensors by the names of the trained parameters: the parameters themselves, gradients, or one kind of moment."""

OptimizerState = dict[str, Parameters]
"""What an optimiser carries from step to step: by kind (``second_moment``) a tensor for each parameter name."""


class TrainingState(NamedTuple):
    """All that a training step starts from, or leads to.

    Attributes:
        parameters: The trained parameters.
        optimizer_state: The optimiser's state.
    """

    parameters: Parameters
    optimizer_state: OptimizerState


class Optimizer(Protocol):
    """An optimiser whose step is a pure function: nothing is changed in place."""

    def initial_state(self, parameters: Parameters) -> OptimizerState:
        """The state before the first step: zeros in the shapes of the parameters."""

    def step(
        self, parameters: Parameters, state: OptimizerState, gradients: Parameters, learning_rate: float, number: int
    ) -> tuple[Parameters, OptimizerState]:
        """Parameters and state after step ``number`` (the first is 1)."""

    def adjoint(self, state: OptimizerState, gradients: Parameters, learning_rate: float, number: int) -> StepAdjoint:
        """The reverse derivative (vector-Jacobian product) of step ``number``.

        Args:
            state: The optimiser's state before the step.
            gradients: The step's gradients after clipping.
            learning_rate: Of the step.
            number: Of the step; the first is 1.
        """

    def describe(self) -> dict[str, Any]:
        """Type and hyperparameters as JSON, of which ``optimizer_from_description`` makes the same optimiser."""


class StepAdjoint(Protocol):
    """The reverse derivative of one optimiser step, with the gradients held constant."""

    def pull_back(self, parameters: Parameters, state: OptimizerState) -> Parameters:
        """Turns the derivatives of ``K`` scalars with respect to a step's results into those to its inputs, in place.

        Args:
            parameters: The derivatives with respect to the parameters, ``[K, *shape]`` by name.
            state: The derivatives with respect to the optimiser's state, in the same shapes.

        Returns:
            The derivatives with respect to the step's gradients, ``[K, *shape]`` by name.
        """


@dataclass(frozen=True)
class AdamW:
    """AdamW (Loshchilov and Hutter 2019, algorithm 2) with epsilon inside the square root.

    ``theta' = (1 - lr * decay) theta - lr * m_hat / sqrt(v_hat + epsilon**2)``, with the bias-corrected moments
    ``m_hat`` and ``v_hat`` of Kingma and Ba (2015, algorithm 1). The papers have ``sqrt(v_hat) + epsilon``.

    Attributes:
        betas: Decay rates of the first and second moment.
        epsilon: In the units of a gradient.
        weight_decay: Decoupled weight decay by parameter name; parameters whose name is missing do not decay.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-6
    weight_decay: Mapping[str, float] = field(default_factory=dict)

    def initial_state(self, parameters: Parameters) -> OptimizerState:
        """Both moments are zero."""
        return {"first_moment": _zeros(parameters), "second_moment": _zeros(parameters)}

    def step(
        self, parameters: Parameters, state: OptimizerState, gradients: Parameters, learning_rate: float, number: int
    ) -> tuple[Parameters, OptimizerState]:
        """Parameters and state after step ``number`` (the first is 1)."""
        rule = AdamWUpdate(learning_rate, number, self.betas, self.epsilon)
        updated: Parameters = {}
        moments: OptimizerState = {"first_moment": {}, "second_moment": {}}
        for name, parameter in parameters.items():
            updated[name], moments["first_moment"][name], moments["second_moment"][name] = rule.apply(
                parameter,
                gradients[name],
                state["first_moment"][name],
                state["second_moment"][name],
                weight_decay=self.weight_decay.get(name, 0.0),
            )
        return updated, moments

    def adjoint(self, state: OptimizerState, gradients: Parameters, learning_rate: float, number: int) -> StepAdjoint:
        """The reverse derivative of step ``number``; ``state`` is the state before it, ``gradients`` are clipped."""
        beta1, beta2 = self.betas
        rule = AdamWUpdate(learning_rate, number, self.betas, self.epsilon)
        by_first: Parameters = {}
        by_second: Parameters = {}
        for name, gradient in gradients.items():
            first, _, root = rule.moments(gradient, state["first_moment"][name], state["second_moment"][name])
            by_first[name] = (-learning_rate / (1.0 - beta1**number)) / root
            by_second[name] = first.mul_(by_first[name]).div_(root.square_().mul_(-2.0 * (1.0 - beta2**number)))
        shrinkage = {name: 1.0 - learning_rate * self.weight_decay.get(name, 0.0) for name in gradients}
        return _AdamWAdjoint(self.betas, gradients, by_first, by_second, shrinkage)

    def describe(self) -> dict[str, Any]:
        """Type, betas, epsilon and the weight decay of each parameter name, as JSON."""
        return {
            "type": "adamw",
            "betas": list(self.betas),
            "epsilon": self.epsilon,
            "weight_decay": dict(self.weight_decay),
        }


@dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent with momentum and decoupled weight decay.

    ``u' = momentum * u + g``, ``theta' = (1 - lr * decay) theta - lr * u'`` (SGDW, Loshchilov and Hutter 2019,
    algorithm 1, with the velocity ``u`` free of the learning rate, as in ``torch.optim.SGD``).

    Attributes:
        momentum: Decay rate of the velocity.
        weight_decay: Decoupled weight decay by parameter name; parameters whose name is missing do not decay.
    """

    momentum: float = 0.9
    weight_decay: Mapping[str, float] = field(default_factory=dict)

    def initial_state(self, parameters: Parameters) -> OptimizerState:
        """The velocity is zero."""
        return {"velocity": _zeros(parameters)}

    def step(
        self, parameters: Parameters, state: OptimizerState, gradients: Parameters, learning_rate: float, number: int
    ) -> tuple[Parameters, OptimizerState]:
        """Parameters and state after step ``number``, on which SGD does not depend."""
        updated: Parameters = {}
        velocity: Parameters = {}
        for name, parameter in parameters.items():
            velocity[name] = self.momentum * state["velocity"][name] + gradients[name]
            decay = learning_rate * self.weight_decay.get(name, 0.0)
            updated[name] = torch.add(parameter * (1.0 - decay), velocity[name], alpha=-learning_rate)
        return updated, {"velocity": velocity}

    def adjoint(self, state: OptimizerState, gradients: Parameters, learning_rate: float, number: int) -> StepAdjoint:
        """The reverse derivative of a step; it depends neither on ``state`` nor on ``number``."""
        shrinkage = {name: 1.0 - learning_rate * self.weight_decay.get(name, 0.0) for name in gradients}
        return _SGDAdjoint(self.momentum, learning_rate, shrinkage)

    def describe(self) -> dict[str, Any]:
        """Type, momentum and the weight decay of each parameter name, as JSON."""
        return {"type": "sgd", "momentum": self.momentum, "weight_decay": dict(self.weight_decay)}


@dataclass(frozen=True)
class _AdamWAdjoint:
    """Reverse derivative of ``theta' = shrinkage theta + by_first m'``; ``by_second`` is ``d theta' / d v'``.

    With ``m' = b1 m + (1 - b1) g`` and ``v' = b2 v + (1 - b2) g^2``, by the chain rule.
    """

    betas: tuple[float, float]
    gradients: Parameters
    by_first: Parameters
    by_second: Parameters
    shrinkage: Mapping[str, float]

    def pull_back(self, parameters: Parameters, state: OptimizerState) -> Parameters:
        beta1, beta2 = self.betas
        found: Parameters = {}
        for name, gradient in self.gradients.items():
            first, second = state["first_moment"][name], state["second_moment"][name]
            first.addcmul_(parameters[name], self.by_first[name])
            second.addcmul_(parameters[name], self.by_second[name])
            found[name] = torch.mul(first, 1.0 - beta1).addcmul_(second, gradient, value=2.0 * (1.0 - beta2))
            first.mul_(beta1)
            second.mul_(beta2)
            parameters[name].mul_(self.shrinkage[name])
        return found


@dataclass(frozen=True)
class _SGDAdjoint:
    """Reverse derivative of ``theta' = shrinkage theta - lr u'`` with ``u' = momentum u + g``, by the chain rule."""

    momentum: float
    learning_rate: float
    shrinkage: Mapping[str, float]

    def pull_back(self, parameters: Parameters, state: OptimizerState) -> Parameters:
        found: Parameters = {}
        for name, factor in self.shrinkage.items():
            velocity = state["velocity"][name]
            found[name] = velocity.add_(parameters[name], alpha=-self.learning_rate).clone()
            velocity.mul_(self.momentum)
            parameters[name].mul_(factor)
        return found


@dataclass(frozen=True)
class AdamWUpdate:
    """One AdamW step, for one tensor at a time.

    Attributes:
        learning_rate: Of the step.
        number: Of the step; the first is 1.
        betas: Decay rates of the first and second moment.
        epsilon: In the units of a gradient, inside the square root.
    """

    learning_rate: float
    number: int
    betas: tuple[float, float]
    epsilon: float

    def apply(
        self,
        parameter: Tensor,
        gradient: Tensor,
        first_moment: Tensor,
        second_moment: Tensor,
        *,
        weight_decay: float = 0.0,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The tensor's new value, first and second moment."""
        first, second, root = self.moments(gradient, first_moment, second_moment)
        scale = -self.learning_rate / (1.0 - self.betas[0] ** self.number)
        return (parameter * (1.0 - self.learning_rate * weight_decay)).addcdiv_(first, root, value=scale), first, second

    def moments(self, gradient: Tensor, first_moment: Tensor, second_moment: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Both moments after the step, and ``sqrt(v_hat + epsilon**2)``."""
        beta1, beta2 = self.betas
        # In place only on tensors made here: half the memory traffic, and autograd sees the same function.
        first = torch.lerp(first_moment, gradient, 1.0 - beta1)
        second = (second_moment * beta2).addcmul_(gradient, gradient, value=1.0 - beta2)
        return first, second, (second / (1.0 - beta2**self.number)).add_(self.epsilon**2).sqrt_()


def optimizer_for(settings: FinetuneSettings, parameters: Mapping[str, Tensor]) -> Optimizer:
    """The optimiser of the settings; weight decay is for tensors of two or more dimensions only."""
    decay: dict[str, float] = {}
    if settings.weight_decay:
        decay = {name: settings.weight_decay for name, parameter in parameters.items() if parameter.ndim >= 2}
    if settings.optimizer == "sgd":
        return SGD(momentum=settings.momentum, weight_decay=decay)
    return AdamW(betas=settings.betas, epsilon=settings.epsilon, weight_decay=decay)


def optimizer_from_description(description: Mapping[str, Any]) -> Optimizer:
    """The optimiser that ``Optimizer.describe`` has described in a recorded run.

    Raises:
        RecordError: it is of another type, whose steps cannot be executed again.
    """
    kind = description.get("type")
    if kind == "adamw":
        first, second = description["betas"]
        return AdamW((first, second), description["epsilon"], description["weight_decay"])
    if kind == "sgd":
        return SGD(description["momentum"], description["weight_decay"])
    raise RecordError(f"the run was trained with {kind}, whose steps cannot be executed again", field="optimizer")


class SmoothAdamW(torch.optim.Optimizer):
    """``AdamW`` as a ``torch.optim.Optimizer``, for ``Trainer(optimizers=(SmoothAdamW(...), None))``.

    Args:
        parameters: Parameters, or groups of them with their own ``weight_decay``; frozen ones are left out.
        lr: Learning rate, changed by whatever scheduler is used.
        betas: Decay rates of the first and second moment.
        epsilon: In the units of a gradient, inside the square root.
        weight_decay: Decoupled weight decay.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 5e-5,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        epsilon: float = 1e-6,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "betas": betas, "epsilon": epsilon, "weight_decay": weight_decay})

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step; a trained parameter without a gradient is treated as one whose gradient is zero."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.requires_grad:
                    self._update(parameter, group)
        return loss

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = 0
            state["first_moment"] = torch.zeros_like(parameter)
            state["second_moment"] = torch.zeros_like(parameter)
        state["step"] += 1
        rule = AdamWUpdate(float(group["lr"]), state["step"], group["betas"], group["epsilon"])
        updated, state["first_moment"], state["second_moment"] = rule.apply(
            parameter,
            torch.zeros_like(parameter) if parameter.grad is None else parameter.grad,
            state["first_moment"],
            state["second_moment"],
            weight_decay=group["weight_decay"],
        )
        parameter.copy_(updated)


def _zeros(parameters: Parameters) -> Parameters:
    return {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
