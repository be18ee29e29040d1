"""Change of an answer by fine-tuning: the base model's own answer, and a first-order split of the change by module."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from influence_engine.gradients import LayerGradient, TrackedLayers
from influence_engine.gradients.layers import Layer
from influence_engine.gradients.position_products import products_of_calls
from influence_engine.models.frozen_prefix import CachedPrefix, FrozenPrefix
from influence_engine.tasks import Batch, Task


class BaseDifference:
    """Compares a fine-tuned model with the model it was fine-tuned from.

    The two models share their frozen weights in memory, so that the base model costs a copy of the trained ones only.

    Args:
        model: The fine-tuned model.
        base: The model before fine-tuning, of the same structure; it is changed to share the frozen weights.
        tracked: The fine-tuned model's layers.
    """

    def __init__(self, model: nn.Module, base: nn.Module, tracked: TrackedLayers) -> None:
        self.base = base.eval().requires_grad_(False)
        tuned = dict(model.named_parameters())
        for name, parameter in base.named_parameters():
            shared = not tuned[name].requires_grad and _equal(tuned[name], parameter)
            # Weights read from a file are memory-mapped: with a copy of the few that differ, the mapping is released.
            parameter.data = tuned[name].data if shared else parameter.data.clone()
        for buffer in base.buffers():
            buffer.data = buffer.data.clone()
        before = dict(base.named_parameters())
        trained = [name for name, parameter in tuned.items() if parameter.requires_grad]
        self._tuned_prefix, self._base_prefix = FrozenPrefix(model, trained), FrozenPrefix(base, trained)
        self._tracked = tracked
        self._displacements: dict[str, Tensor] = {
            layer.name: layer.matrix({name: tuned[name].data - before[name].data for name in layer.parameters()})
            for layer in tracked.layers
        }

    def caching(self) -> AbstractContextManager[CachedPrefix]:
        """Within it the fine-tuned model runs on one batch; yields the outputs of shared layers, for ``measure``."""
        return self._tuned_prefix.caching()

    def measure(self, task: Task, batch: Batch, cached: CachedPrefix) -> tuple[Tensor, Tensor]:
        """Outputs and measurements ``[B]`` of the base model on a batch whose targets are named.

        Args:
            task: The task.
            batch: The batch that the fine-tuned model has just run on.
            cached: What ``caching`` yielded for it.
        """
        with torch.no_grad(), self._base_prefix.reusing(cached):
            outputs = task.outputs(self.base, batch)
            return outputs, task.measurement(outputs, batch)

    def split(self, gradients: Mapping[str, LayerGradient]) -> dict[str, Tensor]:
        """First-order change of each measurement by layer, ``[B]`` each: ``<gradient, fine-tuned - base weights>``.

        This is the first term of a Taylor expansion at the fine-tuned weights. The change of the measurement from base
        to fine-tuned model, less the sum over layers, is the remainder: curvature and interactions between layers.

        Args:
            gradients: The fine-tuned model's gradients of the measurements, by layer name.
        """
        return {name: gradient.inner(self._displacements[name]) for name, gradient in gradients.items()}

    def split_by_position(
        self, calls: Iterable[tuple[Layer, Tensor, Tensor]], batch_size: int, maps: Sequence[Tensor]
    ) -> list[tuple[str, Tensor]]:
        """The same first-order change by call of a layer and position; all of them sum to what ``split`` sums to.

        Args:
            calls: What ``Trace.output_gradients`` gave for the measurements.
            batch_size: Of the trace.
            maps: Feature maps that the model pools.
        """
        return products_of_calls(calls, batch_size, self._tracked, self._displacements, maps)


def _equal(a: Tensor, b: Tensor) -> bool:
    same_memory = a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.stride() == b.stride()
    return same_memory or torch.equal(a, b)
