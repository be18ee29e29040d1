"""Optimiser steps as pure, differentiable functions of parameters, state, gradients and learning rate.

Fine-tuning runs them without a graph, re-execution runs them again, and a replay walks them back by their ``adjoint``,
which the tests hold against autograd. AdamW keeps its epsilon inside the root, so that a step is smooth where a
gradient is zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, overload

import torch
from torch import Tensor

from influence_engine.errors import RecordError
from influence_engine.training.settings import FinetuneSettings

Parameters = dict[str, Tensor]
"""Trained tensors by parameter name."""

OptimizerState = dict[str, Parameters]
"""What an optimiser carries from step to step: for each kind (``second_moment``) a tensor by parameter name."""


class Optimizer(Protocol):
    """A step is a function; nothing is changed in place."""

    def initial_state(self, parameters: Parameters) -> OptimizerState:
        """The state before the first step: zeros in the shapes of the parameters."""

    def step(
        self, parameters: Parameters, state: OptimizerState, gradients: Parameters, learning_rate: float, number: int
    ) -> tuple[Parameters, OptimizerState]:
        """Parameters and state after step ``number`` (the first is 1)."""

    def adjoint(self, state: OptimizerState, gradients: Parameters, learning_rate: float, number: int) -> StepAdjoint:
        """The step's derivative in reverse; ``state`` is the one before it."""

    def describe(self) -> dict[str, Any]:
        """A JSON value from which ``optimizer_from_description`` makes the same optimiser."""


class StepAdjoint(Protocol):
    """One step in reverse, without what gradients depend on."""

    def pull_back(self, parameters: Parameters, state: OptimizerState) -> Parameters:
        """From derivatives after a step to those before it, in place; returns those by the step's gradients.

        Args:
            parameters: By name ``[K, *shape]``, of ``K`` scalars by the parameters.
            state: The same for the state.
        """


@dataclass(frozen=True)
class AdamW:
    """Adam with decoupled weight decay and epsilon inside the root (Kingma & Ba 2015; Loshchilov & Hutter 2019).

    ``theta' = (1 - lr * decay) theta - lr * m_hat / sqrt(v_hat + epsilon**2)``, with the bias-corrected moments.

    Attributes:
        betas: Decay rates of the first and second moment.
        epsilon: In the units of a gradient.
        weight_decay: Decay by parameter name; names that are missing do not decay.
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
        updated: Parameters = {}
        moments: OptimizerState = {"first_moment": {}, "second_moment": {}}
        for name, parameter in parameters.items():
            updated[name], moments["first_moment"][name], moments["second_moment"][name] = adamw_update(
                parameter,
                gradients[name],
                state["first_moment"][name],
                state["second_moment"][name],
                learning_rate=learning_rate,
                number=number,
                betas=self.betas,
                epsilon=self.epsilon,
                weight_decay=self.weight_decay.get(name, 0.0),
            )
        return updated, moments

    def adjoint(self, state: OptimizerState, gradients: Parameters, learning_rate: float, number: int) -> StepAdjoint:
        """See ``Optimizer``."""
        beta1, beta2 = self.betas
        by_first: Parameters = {}
        by_second: Parameters = {}
        for name, gradient in gradients.items():
            before = state["first_moment"][name], state["second_moment"][name]
            first, _, root = _moments(gradient, *before, number=number, betas=self.betas, epsilon=self.epsilon)
            by_first[name] = (-learning_rate / (1.0 - beta1**number)) / root
            by_second[name] = first.mul_(by_first[name]).div_(root.square_().mul_(-2.0 * (1.0 - beta2**number)))
        left = {name: 1.0 - learning_rate * self.weight_decay.get(name, 0.0) for name in gradients}
        return _AdamWAdjoint(self.betas, gradients, by_first, by_second, left)

    def describe(self) -> dict[str, Any]:
        """Type, betas, epsilon and the decay of each name."""
        return {
            "type": "adamw",
            "betas": list(self.betas),
            "epsilon": self.epsilon,
            "weight_decay": dict(self.weight_decay),
        }


@dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent with momentum and decoupled weight decay.

    ``u' = momentum * u + g``, ``theta' = (1 - lr * decay) theta - lr * u'``.

    Attributes:
        momentum: Share of the velocity that is kept.
        weight_decay: Decay by parameter name; names that are missing do not decay.
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
        """See ``Optimizer``."""
        left = {name: 1.0 - learning_rate * self.weight_decay.get(name, 0.0) for name in gradients}
        return _SGDAdjoint(self.momentum, learning_rate, left)

    def describe(self) -> dict[str, Any]:
        """Type, momentum and the decay of each name."""
        return {"type": "sgd", "momentum": self.momentum, "weight_decay": dict(self.weight_decay)}


@dataclass(frozen=True)
class _AdamWAdjoint:
    """``theta' = left theta + by_first m'``; ``by_second`` is its derivative by ``v'``."""

    betas: tuple[float, float]
    gradients: Parameters
    by_first: Parameters
    by_second: Parameters
    left: Mapping[str, float]

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
            parameters[name].mul_(self.left[name])
        return found


@dataclass(frozen=True)
class _SGDAdjoint:
    momentum: float
    learning_rate: float
    left: Mapping[str, float]

    def pull_back(self, parameters: Parameters, state: OptimizerState) -> Parameters:
        found: Parameters = {}
        for name, factor in self.left.items():
            velocity = state["velocity"][name]
            found[name] = velocity.add_(parameters[name], alpha=-self.learning_rate).clone()
            velocity.mul_(self.momentum)
            parameters[name].mul_(factor)
        return found


def adamw_update(
    parameter: Tensor,
    gradient: Tensor,
    first_moment: Tensor,
    second_moment: Tensor,
    *,
    learning_rate: float,
    number: int,
    betas: tuple[float, float],
    epsilon: float,
    weight_decay: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """One tensor's step: new parameter, first and second moment. ``number`` counts from 1."""
    first, second, root = _moments(gradient, first_moment, second_moment, number=number, betas=betas, epsilon=epsilon)
    scale = -learning_rate / (1.0 - betas[0] ** number)
    return (parameter * (1.0 - learning_rate * weight_decay)).addcdiv_(first, root, value=scale), first, second


def _moments(
    gradient: Tensor,
    first_moment: Tensor,
    second_moment: Tensor,
    *,
    number: int,
    betas: tuple[float, float],
    epsilon: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Both moments after a step, and ``sqrt(v_hat + epsilon**2)``."""
    beta1, beta2 = betas
    # In place only on tensors made here: half the memory traffic, and autograd sees the same function.
    first = torch.lerp(first_moment, gradient, 1.0 - beta1)
    second = (second_moment * beta2).addcmul_(gradient, gradient, value=1.0 - beta2)
    return first, second, (second / (1.0 - beta2**number)).add_(epsilon**2).sqrt_()


def gradient_norm(gradients: Parameters) -> Tensor:
    """The norm of all of them together, a scalar."""
    return torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients.values()]))


def clipped(gradients: Parameters, max_norm: float | None) -> tuple[Parameters, Tensor]:
    """Gradients scaled down to a global norm of ``max_norm``, and the factor (1 where they were short enough).

    The same formula as ``torch.nn.utils.clip_grad_norm_``, kept differentiable.
    """
    if max_norm is None:
        return gradients, torch.ones(())
    norm = gradient_norm(gradients)
    factor = torch.clamp(max_norm / (norm + 1e-6), max=1.0)
    return {name: gradient * factor for name, gradient in gradients.items()}, factor


def clipping_pulled_back(pulled: Parameters, gradients: Parameters, norm: float, max_norm: float | None) -> Parameters:
    """From derivatives by gradients that ``clipped`` gave to those by the gradients it was given, in place.

    Args:
        pulled: ``[K, *shape]`` by name.
        gradients: What ``clipped`` was given.
        norm: Their ``gradient_norm``, which is the same for every direction.
        max_norm: As given to ``clipped``.
    """
    if max_norm is None or max_norm / (norm + 1e-6) > 1.0:
        return pulled
    # factor = max_norm / (norm + 1e-6); its derivative is along the gradient.
    factor, bent = max_norm / (norm + 1e-6), -max_norm / ((norm + 1e-6) ** 2 * norm)
    along = torch.stack([pulled[name].flatten(1) @ gradient.flatten() for name, gradient in gradients.items()]).sum(0)
    for name, gradient in gradients.items():
        scale = (bent * along).view(-1, *[1] * gradient.ndim)
        pulled[name].mul_(factor).addcmul_(scale, gradient)
    return pulled


def optimizer_for(settings: FinetuneSettings, parameters: Mapping[str, Tensor]) -> Optimizer:
    """The optimiser of the settings; only tensors of two or more dimensions decay."""
    decay: dict[str, float] = {}
    if settings.weight_decay:
        decay = {name: settings.weight_decay for name, parameter in parameters.items() if parameter.ndim >= 2}
    if settings.optimizer == "sgd":
        return SGD(momentum=settings.momentum, weight_decay=decay)
    return AdamW(betas=settings.betas, epsilon=settings.epsilon, weight_decay=decay)


def optimizer_from_description(description: Mapping[str, Any]) -> Optimizer:
    """The optimiser that a record describes.

    Raises:
        RecordError: the record's optimiser has no pure step here.
    """
    kind = description.get("type")
    if kind == "adamw":
        first, second = description["betas"]
        return AdamW((first, second), description["epsilon"], description["weight_decay"])
    if kind == "sgd":
        return SGD(description["momentum"], description["weight_decay"])
    raise RecordError(f"the run was trained with {kind}, whose steps cannot be executed again", field="optimizer")


class SmoothAdamW(torch.optim.Optimizer):
    """``AdamW`` above as an optimiser of torch, for ``Trainer(optimizers=(SmoothAdamW(...), None))``.

    Args:
        parameters: Parameters, or groups of them with their own ``weight_decay``; frozen ones are left out.
        lr: Learning rate, changed by whatever scheduler is used.
        betas: Decay rates of the first and second moment.
        epsilon: In the units of a gradient, inside the root.
        weight_decay: Decoupled decay.
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
        updated, state["first_moment"], state["second_moment"] = adamw_update(
            parameter,
            torch.zeros_like(parameter) if parameter.grad is None else parameter.grad,
            state["first_moment"],
            state["second_moment"],
            learning_rate=float(group["lr"]),
            number=state["step"],
            betas=group["betas"],
            epsilon=group["epsilon"],
            weight_decay=group["weight_decay"],
        )
        parameter.copy_(updated)


def _zeros(parameters: Parameters) -> Parameters:
    return {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
