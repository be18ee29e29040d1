"""One training step as a function of parameters, optimiser state and example weights.

Fine-tuning and re-execution call it without a graph. A replay differentiates the same ``gradient`` with respect to
weights and parameters; with ``differentiable=True`` the whole step can be differentiated.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from influence_engine.errors import ModelError
from influence_engine.models.first_token_head import first_position_only
from influence_engine.tasks import Batch, Task
from influence_engine.training.frozen_cache import FrozenSteps
from influence_engine.training.optimizers import Optimizer, OptimizerState, Parameters, clipped
from influence_engine.training.schedule import Step

_PREFIX = "model."


class Objective(nn.Module):
    """The loss of a micro-batch as a module, so that its parameters can be handed in from outside.

    Args:
        model: The model.
        task: Its task.
        frozen: Takes the outputs of frozen layers from there instead of computing them in every execution.
        first_position: Leaves out what the model's head does not read, see ``first_position_only``. A run's steps come
            out bit for bit only with what it was recorded with.
    """

    def __init__(
        self, model: nn.Module, task: Task, frozen: FrozenSteps | None = None, *, first_position: bool = False
    ) -> None:
        super().__init__()
        self.model = model
        self.task = task
        self._frozen = frozen
        self._first_position = first_position

    def running(self, step: int, micro_batch: int) -> contextlib.AbstractContextManager[None]:
        """While that micro-batch of that step runs."""
        return contextlib.nullcontext() if self._frozen is None else self._frozen.running(step, micro_batch)

    def forward(self, batch: Batch, coefficients: Tensor) -> tuple[Tensor, Tensor]:
        """Returns ``sum_i coefficients_i l_i`` and the losses ``l_i``, ``[B]``."""
        losses = self.task.loss(self.outputs(batch), batch)
        return (coefficients.to(losses.device) * losses).sum(), losses

    def outputs(self, batch: Batch) -> Tensor:
        """The task's outputs of a micro-batch."""
        with first_position_only(self.model) if self._first_position else contextlib.nullcontext():
            return self.task.outputs(self.model, batch)

    def evaluate(self, parameters: Parameters, batch: Batch, coefficients: Tensor) -> tuple[Tensor, Tensor]:
        """The same at the given parameters; those not named keep the module's own values."""
        named = {_PREFIX + name: parameter for name, parameter in parameters.items()}
        result: tuple[Tensor, Tensor] = functional_call(self, named, (batch, coefficients))
        return result


@dataclass(frozen=True)
class StepResult:
    """What a step leads to.

    Attributes:
        parameters: After the step.
        state: The optimiser's state after the step.
        loss: The objective before the step, a scalar.
        losses: For each micro-batch the losses of its examples, ``[B]``.
        clip_factor: What the gradient was multiplied with, a scalar, 1 where it was not clipped.
    """

    parameters: Parameters
    state: OptimizerState
    loss: Tensor
    losses: list[Tensor]
    clip_factor: Tensor


def training_step(
    objective: Objective,
    optimizer: Optimizer,
    step: Step,
    batches: Sequence[Batch],
    parameters: Parameters,
    state: OptimizerState,
    *,
    weights: Tensor | None = None,
    max_grad_norm: float | None = None,
    differentiable: bool = False,
) -> StepResult:
    """Gradient of ``sum_i w_i a_i l_i / Z_t``, clipping by global norm, optimiser step.

    Args:
        objective: Model and task.
        optimizer: Its step.
        step: Which examples, and how they count.
        batches: For each micro-batch of ``step`` its collated examples.
        parameters: The trained parameters before the step.
        state: The optimiser's state before the step.
        weights: The ``w_i`` of every example of the data set, ``[N]``; None weighs all 1.
        max_grad_norm: Longest gradient that is not scaled down.
        differentiable: Keeps the graph from weights, parameters and state to the result.
    """
    inputs = {name: _input(parameter, differentiable) for name, parameter in parameters.items()}
    with seeded(step.seed):
        gradients, loss, losses = gradient(objective, step, batches, inputs, weights, differentiable=differentiable)
    with contextlib.nullcontext() if differentiable else torch.no_grad():
        gradients, clip_factor = clipped(gradients, max_grad_norm)
        updated, new_state = optimizer.step(inputs, state, gradients, step.learning_rate, step.number)
    return StepResult(updated, new_state, loss, losses, clip_factor)


def gradient(
    objective: Objective,
    step: Step,
    batches: Sequence[Batch],
    parameters: Parameters,
    weights: Tensor | None = None,
    *,
    differentiable: bool = False,
) -> tuple[Parameters, Tensor, list[Tensor]]:
    """The step's gradient summed over its micro-batches, its objective, and the losses of each micro-batch.

    A parameter that the outputs do not depend on has gradient zero.
    """
    total: Parameters = {}
    loss = torch.zeros(())
    losses: list[Tensor] = []
    for parts, part, each in gradients_of_micro_batches(
        objective, step, batches, parameters, weights, differentiable=differentiable
    ):
        total = {name: total[name] + found for name, found in parts.items()} if total else parts
        loss = loss + (part if differentiable else part.detach())
        losses.append(each if differentiable else each.detach())
    return total, loss, losses


def gradients_of_micro_batches(
    objective: Objective,
    step: Step,
    batches: Sequence[Batch],
    parameters: Parameters,
    weights: Tensor | None = None,
    *,
    differentiable: bool = False,
) -> Iterator[tuple[Parameters, Tensor, Tensor]]:
    """Each micro-batch's part of the step's gradient and of its objective, and its losses; none is held on to here."""
    for number, (rows, shares, batch) in enumerate(zip(step.rows, step.shares, batches, strict=True)):
        counted = shares if weights is None else shares * weights[rows]
        with objective.running(step.number, number):
            part, each = objective.evaluate(parameters, batch, counted / step.normalizer)
        parts = torch.autograd.grad(
            part, list(parameters.values()), create_graph=differentiable, allow_unused=True, materialize_grads=True
        )
        yield dict(zip(parameters, parts, strict=True)), part, each
        del parts, part, each


def trained_parameters(model: nn.Module, names: Sequence[str]) -> Parameters:
    """Copies of the named parameters.

    Raises:
        ModelError: the model has no parameter of such a name.
    """
    found = dict(model.named_parameters())
    missing = [name for name in names if name not in found]
    if missing:
        raise ModelError(f"{type(model).__name__} has no parameter {missing[0]!r}")
    return {name: found[name].detach().clone() for name in names}


@contextlib.contextmanager
def parameters_put_back(model: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """The named parameters have the values that they have now again afterwards, whatever is put there meanwhile."""
    own = trained_parameters(model, names)
    try:
        yield
    finally:
        put_parameters(model, own)


def put_parameters(model: nn.Module, parameters: Mapping[str, Tensor]) -> None:
    """Copies the given values into the model."""
    found = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in parameters.items():
            found[name].copy_(value)


def set_dropout(model: nn.Module, probability: float) -> None:
    """Training mode with dropout of the given probability everywhere; 0 is evaluation mode.

    Normalisation over a batch stays in evaluation mode: its running averages would make the loss of an example
    depend on its neighbours.
    """
    model.train(probability > 0)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
        if not probability:
            continue
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = probability
        for name, value in list(vars(module).items()):
            # Some attention modules keep their dropout as a number instead of a layer.
            if name.endswith("dropout") and isinstance(value, float):
                setattr(module, name, probability)


def _input(parameter: Tensor, differentiable: bool) -> Tensor:
    if differentiable and parameter.requires_grad:
        return parameter
    return parameter.detach().requires_grad_()


@contextlib.contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """While a step's random numbers (dropout) are drawn; None draws none."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
