"""What fine-tuning changed in one answer: the base model's own answer, and a first-order split over modules."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from influence_engine.gradients import LayerGradient, TrackedLayers
from influence_engine.models.frozen_prefix import FrozenPrefix, Kept
from influence_engine.tasks import Batch, Task


class BaseDifference:
    """Compares a fine-tuned model with the model it was fine-tuned from.

    Frozen weights are shared between the two, so the base costs only its own copy of what was trained.

    Args:
        model: The fine-tuned model.
        base: The model before fine-tuning, of the same structure.
        tracked: The fine-tuned model's layers.
    """

    def __init__(self, model: nn.Module, base: nn.Module, tracked: TrackedLayers) -> None:
        self.base = base.eval().requires_grad_(False)
        tuned = dict(model.named_parameters())
        for name, parameter in base.named_parameters():
            shared = not tuned[name].requires_grad and torch.equal(tuned[name], parameter)
            # Weights read from a file are pages of that file: a copy of the few that differ lets go of all the others.
            parameter.data = tuned[name].data if shared else parameter.data.clone()
        for buffer in base.buffers():
            buffer.data = buffer.data.clone()
        before = dict(base.named_parameters())
        trained = [name for name, parameter in tuned.items() if parameter.requires_grad]
        self._tuned_prefix, self._base_prefix = FrozenPrefix(model, trained), FrozenPrefix(base, trained)
        self._displacements: dict[str, Tensor] = {
            layer.name: layer.matrix({name: tuned[name].data - before[name].data for name in layer.parameters()})
            for layer in tracked.layers
        }

    def keeping(self) -> AbstractContextManager[Kept]:
        """While the fine-tuned model runs on a batch: what ``measure`` needs to not compute shared layers again."""
        return self._tuned_prefix.keeping()

    def measure(self, task: Task, batch: Batch, kept: Kept) -> tuple[Tensor, Tensor]:
        """Outputs and measurements of the base model on a batch whose targets are named.

        Args:
            task: The task.
            batch: The batch that the fine-tuned model has just run on.
            kept: What ``keeping`` yielded meanwhile.
        """
        with torch.no_grad(), self._base_prefix.recalling(kept):
            outputs = task.outputs(self.base, batch)
            return outputs, task.measurement(outputs, batch)

    def split(self, gradients: Mapping[str, LayerGradient]) -> dict[str, Tensor]:
        """First-order change of each measurement by layer, ``[B]`` each: ``<gradient, trained - base weights>``.

        The gradient is the fine-tuned model's, so what the layers' changes do to each other's effect is missing; the
        whole change minus the sum of these is that remainder.
        """
        return {name: gradient.inner(self._displacements[name]) for name, gradient in gradients.items()}
