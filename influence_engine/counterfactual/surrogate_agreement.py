"""How far a replayable surrogate agrees with the served model, for which its counterfactual measurements are to stand.

A model that was trained without a record cannot be trained again step by step. A surrogate, trained here on the same
data with a record, can; what is measured on the surrogate holds for the served model as far as the two agree, and every
answer says how far that is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

import torch
from torch import Tensor, nn

from influence_engine.errors import DataError
from influence_engine.resources import to_device
from influence_engine.tasks import Example, Task, with_targets, without_targets

_BATCH = 32

MOST_GRADIENTS = 64
"""Held-out inputs whose gradients are compared; each takes a backward pass of both models."""

UNRELATED = 0.2
"""Correlation of the outputs below which a surrogate has learnt nothing of what the served model has."""

TRUSTED = 0.5
"""Correlation of the outputs below which a surrogate's retrainings are no measure of an index of the served model."""


@dataclass(frozen=True)
class Agreement:
    """Agreement of a served model and its surrogate on the same held-out inputs.

    Attributes:
        examples: Number of inputs.
        labels: Share of the inputs for which both models predict the same label.
        logits: Correlation of the models' outputs, each input's mean taken out.
        gradients: Mean cosine of the gradients of the measurement (of what the served model predicts) by the weights
            that the surrogate's training changed; None where the models' weights have different names or shapes.
        base_labels: ``labels`` by chance: share of the inputs to which the served model gives its commonest label.
    """

    examples: int
    labels: float
    logits: float
    gradients: float | None
    base_labels: float

    @property
    def summary(self) -> str:
        """The agreement in a line."""
        gradients = "" if self.gradients is None else f", gradients' cosine {self.gradients:.2f}"
        return (
            f"on {self.examples:,} held-out inputs both give the same label for {self.labels:.1%} (the commonest label "
            f"alone: {self.base_labels:.1%}), outputs' correlation {self.logits:.2f}{gradients}"
        )

    @property
    def unusable(self) -> str | None:
        """Why nothing that is measured on the surrogate says anything of the served model; None where it does."""
        if self.labels < self.base_labels:
            return (
                f"it gives the served model's label for {self.labels:.1%} of {self.examples:,} held-out inputs, where "
                f"the commonest label alone is right for {self.base_labels:.1%}"
            )
        if not self.logits >= UNRELATED:  # NaN is no agreement either
            return f"its outputs have a correlation of {self.logits:.2f} with the served model's, which is next to none"
        return None

    @property
    def untrusted(self) -> str | None:
        """Why an index of the served model cannot be checked or evaluated on the surrogate; None where it can."""
        if self.unusable is None and not self.logits >= TRUSTED:
            return f"its outputs have a correlation of {self.logits:.2f} with the served model's, less than {TRUSTED}"
        return self.unusable

    def to_dict(self) -> dict[str, Any]:
        """The agreement as a JSON value, with ``summary`` and ``unusable``."""
        return {**asdict(self), "summary": self.summary, "unusable": self.unusable}

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Self:
        """The agreement of a JSON value."""
        return cls(**{field.name: content[field.name] for field in fields(cls)})


def agreement(
    served_model: nn.Module, surrogate: nn.Module, task: Task, held_out: Sequence[Example], trained: Sequence[str]
) -> Agreement:
    """Compares a served model with its surrogate.

    Args:
        served_model: The served model.
        surrogate: The surrogate, on the same device.
        task: The task of both models.
        held_out: Inputs that neither model was trained on; their targets are not looked at.
        trained: Names of the parameters that the surrogate's training changed.

    Raises:
        DataError: there are no held-out inputs, or the task's outputs are not one row of numbers an input.
    """
    if not held_out:
        raise DataError("there are no held-out examples to compare the models on", field="data.validation")
    served_model.eval()
    surrogate.eval()
    inputs = without_targets(task, held_out)
    outputs = torch.stack([_outputs(model, task, inputs) for model in (served_model, surrogate)])
    centred = (outputs - outputs.mean(-1, keepdim=True)).flatten(1)
    predicted = outputs.argmax(-1)
    return Agreement(
        examples=len(inputs),
        labels=float((predicted[0] == predicted[1]).double().mean()),
        logits=float(torch.nn.functional.cosine_similarity(centred[0], centred[1], dim=0)),
        gradients=_gradients(served_model, surrogate, task, inputs[:MOST_GRADIENTS], trained),
        base_labels=float(torch.bincount(predicted[0]).max() / len(inputs)),
    )


def _outputs(model: nn.Module, task: Task, inputs: Sequence[Example]) -> Tensor:
    device, parts = next(model.parameters()).device, []
    with torch.no_grad():
        for start in range(0, len(inputs), _BATCH):
            batch = to_device(task.collate(inputs[start : start + _BATCH]), device)
            parts.append(task.outputs(model, batch).double().cpu())
    if parts[0].dim() != 2:
        raise DataError("models can be compared where outputs are one row of numbers an input", field="task")
    return torch.cat(parts)


def _gradients(
    served_model: nn.Module, surrogate: nn.Module, task: Task, inputs: Sequence[Example], trained: Sequence[str]
) -> float | None:
    named = [dict(model.named_parameters()) for model in (served_model, surrogate)]
    if any(name not in one for name in trained for one in named):
        return None
    if any(named[0][name].shape != named[1][name].shape for name in trained):
        return None
    device, cosines = next(served_model.parameters()).device, []
    before = [{name: one[name].requires_grad for name in trained} for one in named]
    try:
        for one in named:
            for name in trained:
                one[name].requires_grad_(True)
        for example in inputs:
            batch = with_targets(task, served_model, to_device(task.collate([example]), device))
            flat = [
                _gradient(model, task, batch, [one[name] for name in trained])
                for model, one in zip((served_model, surrogate), named, strict=True)
            ]
            cosines.append(torch.nn.functional.cosine_similarity(flat[0], flat[1], dim=0))
    finally:
        for one, wanted in zip(named, before, strict=True):
            for name in trained:
                one[name].requires_grad_(wanted[name])
    return float(torch.stack(cosines).mean())


def _gradient(model: nn.Module, task: Task, batch: Any, parameters: list[nn.Parameter]) -> Tensor:
    measured = task.measurement(task.outputs(model, batch), batch).sum()
    parts = torch.autograd.grad(measured, parameters, allow_unused=True, materialize_grads=True)
    return torch.cat([part.flatten() for part in parts])
