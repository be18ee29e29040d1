"""The empirical influence function: a few steps on one example alone, and what they change in measurements of others.

It is that of Matelsky, Ungar and Kording (arXiv 2406.00509), but for where it starts: from the model given, as a rule
the fine-tuned one, and not from the model before fine-tuning. It says what that model would learn from an example now,
not what it has learnt from it, and needs no record of a training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from influence_engine.counterfactual.queries import Queries
from influence_engine.errors import ModelError, SettingsError
from influence_engine.tasks import Example, Task
from influence_engine.training.optimizers import SGD, AdamW, Optimizer, TrainingState
from influence_engine.training.schedule import Step
from influence_engine.training.step import Objective, UpdateRule, put_parameters, trained_parameters, training_step


@dataclass(frozen=True)
class SingleStep:
    """The effect of training on one example.

    Attributes:
        own_loss_before: The example's loss before the steps.
        own_loss_after: The example's loss after the steps.
        changes: ``[Q]``, double precision: increases of the queries' measurements, in the measurement's units.
    """

    own_loss_before: float
    own_loss_after: float
    changes: Tensor


def train_on_one(
    model: nn.Module,
    task: Task,
    example: Example,
    queries: Sequence[Example],
    *,
    learning_rate: float,
    steps: int = 1,
    optimizer: str = "sgd",
) -> SingleStep:
    """Takes a few steps on one training example alone, measures, and puts the weights back.

    Args:
        model: The fine-tuned model; ``requires_grad`` marks what is trained.
        task: The model's task.
        example: The training example, with its target.
        queries: What is measured; one that names no target is measured on what the model predicts before the steps.
        learning_rate: Learning rate of each step.
        steps: Number of steps.
        optimizer: ``sgd`` without momentum, or ``adamw`` without weight decay, from a fresh state.

    Raises:
        SettingsError: no step, a learning rate that is not positive, or another optimiser.
        ModelError: no parameter of the model is trained.
        DataError: the example has no target.
    """
    known: dict[str, Optimizer] = {"sgd": SGD(momentum=0.0), "adamw": AdamW((0.9, 0.999), 1e-6, {})}
    if optimizer not in known:
        raise SettingsError(f"optimizer is {optimizer!r}; it must be {' or '.join(known)}", field="optimizer")
    if steps < 1 or not learning_rate > 0:
        what, value = ("steps", steps) if steps < 1 else ("learning_rate", learning_rate)
        raise SettingsError(f"{what} is {value}; it must be positive", field=what)
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    if not names:
        raise ModelError("no parameter of the model has requires_grad; set it on what was trained")
    model.eval()
    device = next(model.parameters()).device
    asked, rule = Queries(model, task, queries), UpdateRule(Objective(model, task), known[optimizer])
    before, _ = asked.measured(model)
    batch = {name: tensor.to(device) for name, tensor in task.collate([example]).items()}
    own = trained_parameters(model, names)
    state = TrainingState(own, rule.optimizer.initial_state(own))
    losses: list[float] = []
    for number in range(1, steps + 1):
        step = Step(number, [torch.zeros(1, dtype=torch.long)], [torch.ones(1)], 1.0, learning_rate, None)
        result = training_step(rule, step, [batch], state)
        state = result.state
        losses.append(float(result.loss))
    try:
        put_parameters(model, state.parameters)
        after, _ = asked.measured(model)
        with torch.no_grad():
            last = float(task.loss(task.outputs(model, batch), batch)[0])
    finally:
        put_parameters(model, own)
    return SingleStep(losses[0], last, after - before)
