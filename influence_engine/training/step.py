"""One training step as a function of parameters, optimiser state and example weights.

Fine-tuning and re-execution call ``training_step`` without a graph. A replay differentiates the same ``gradient`` with
respect to weights and parameters; with ``differentiable=True`` the whole step can be differentiated.
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
from influence_engine.models.trainable import has_running_statistics
from influence_engine.tasks import Batch, Task
from influence_engine.training.clipping import clipped
from influence_engine.training.frozen_cache import FrozenLayers
from influence_engine.training.optimizers import Optimizer, Parameters, TrainingState
from influence_engine.training.schedule import Step

_PREFIX = "model."


class Objective(nn.Module):
    """The weighted loss of a micro-batch as a module, so that its parameters can be handed in from outside.

    Args:
        model: The model.
        task: Its task.
        frozen: Takes the outputs of frozen layers from its cache instead of computing them in every execution.
        first_position: Leaves out what the model's head does not read (``first_position_only``). A run's steps come
            out bit for bit only with the value that they were recorded with.
    """

    def __init__(
        self, model: nn.Module, task: Task, frozen: FrozenLayers | None = None, *, first_position: bool = False
    ) -> None:
        super().__init__()
        self.model = model
        self.task = task
        self._frozen = frozen
        self._first_position = first_position

    def micro_batch(self, step: int, number: int) -> contextlib.AbstractContextManager[None]:
        """Within it the model runs on micro-batch ``number`` of a step, and on nothing else."""
        return contextlib.nullcontext() if self._frozen is None else self._frozen.micro_batch(step, number)

    def forward(self, batch: Batch, coefficients: Tensor) -> tuple[Tensor, Tensor]:
        """Returns ``sum_i coefficients_i l_i`` and the losses ``l_i``, ``[B]``."""
        losses = self.task.loss(self.outputs(batch), batch)
        return (coefficients.to(losses.device) * losses).sum(), losses

    def outputs(self, batch: Batch) -> Tensor:
        """The task's outputs of a micro-batch."""
        with first_position_only(self.model) if self._first_position else contextlib.nullcontext():
            return self.task.outputs(self.model, batch)

    def evaluate(self, parameters: Parameters, batch: Batch, coefficients: Tensor) -> tuple[Tensor, Tensor]:
        """What ``forward`` returns, at the given parameters; those not named have the model's own values."""
        named = {_PREFIX + name: parameter for name, parameter in parameters.items()}
        result: tuple[Tensor, Tensor] = functional_call(self, named, (batch, coefficients))
        return result


@dataclass(frozen=True)
class UpdateRule:
    """What turns a step's examples into an update: gradient of the objective, clipping by global norm, optimiser.

    Attributes:
        objective: Model and task.
        optimizer: Its step.
        max_grad_norm: Longest gradient that is not scaled down; None never scales.
    """

    objective: Objective
    optimizer: Optimizer
    max_grad_norm: float | None = None


@dataclass(frozen=True)
class StepResult:
    """The result of one training step.

    Attributes:
        state: Parameters and optimiser state after the step.
        loss: The objective before the step, a scalar.
        losses: For each micro-batch the losses of its examples, ``[B]``.
        clip_factor: The factor by which clipping scaled the gradient, a scalar; 1 where it did not.
    """

    state: TrainingState
    loss: Tensor
    losses: list[Tensor]
    clip_factor: Tensor


def training_step(
    rule: UpdateRule,
    step: Step,
    batches: Sequence[Batch],
    start: TrainingState,
    *,
    weights: Tensor | None = None,
    differentiable: bool = False,
) -> StepResult:
    """Gradient of ``sum_i w_i a_i l_i / Z_t``, clipping by global norm, optimiser step.

    Args:
        rule: Objective, optimiser and clipping.
        step: Its examples, their ``a_i``, ``Z_t``, learning rate and seed.
        batches: For each micro-batch of ``step`` its collated examples.
        start: Parameters and optimiser state before the step.
        weights: The ``w_i`` of every example of the data set, ``[N]``; None for weights of 1.
        differentiable: Keeps the graph from weights, parameters and optimiser state to the result.
    """
    inputs = {name: _input(parameter, differentiable) for name, parameter in start.parameters.items()}
    with seeded(step.seed):
        gradients, loss, losses = gradient(
            rule.objective, step, batches, inputs, weights, differentiable=differentiable
        )
    with contextlib.nullcontext() if differentiable else torch.no_grad():
        gradients, clip_factor = clipped(gradients, rule.max_grad_norm)
        updated = rule.optimizer.step(inputs, start.optimizer_state, gradients, step.learning_rate, step.number)
    return StepResult(TrainingState(*updated), loss, losses, clip_factor)


def gradient(
    objective: Objective,
    step: Step,
    batches: Sequence[Batch],
    parameters: Parameters,
    weights: Tensor | None = None,
    *,
    differentiable: bool = False,
) -> tuple[Parameters, Tensor, list[Tensor]]:
    """The step's gradient before clipping, its objective, and the losses of each micro-batch.

    A parameter that the outputs do not depend on has gradient zero. The arguments are those of ``training_step``;
    ``parameters`` require gradients.
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
    """For each micro-batch its share of the step's gradient and of its objective, and its losses ``[B]``.

    The arguments are those of ``gradient``. The graph of a micro-batch is freed once the caller drops its tensors.
    """
    for number, (rows, shares, batch) in enumerate(zip(step.rows, step.shares, batches, strict=True)):
        weighted = shares if weights is None else shares * weights[rows]
        with objective.micro_batch(step.number, number):
            part, each = objective.evaluate(parameters, batch, weighted / step.normalizer)
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
    """Restores the present values of the named parameters at its end, whatever is copied into the model within it."""
    own = trained_parameters(model, names)
    try:
        yield
    finally:
        put_parameters(model, own)


def put_parameters(model: nn.Module, parameters: Mapping[str, Tensor]) -> None:
    """Copies the given values into the model's parameters of these names."""
    found = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in parameters.items():
            found[name].copy_(value)


def set_dropout(model: nn.Module, probability: float) -> None:
    """Puts a model into training mode with dropout of one probability everywhere; 0 is evaluation mode.

    Normalisation by running statistics stays in evaluation mode, its statistics constant, whether its weights are
    trained or not: batch statistics would make the loss of an example depend on the other examples of its batch.
    """
    model.train(probability > 0)
    for module in model.modules():
        if has_running_statistics(module):
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
    """Draws torch's random numbers (dropout) from a seed within it; None leaves the random state alone."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
