"""One forward pass whose per-example gradients can be asked for, without changing the model.

Hooks hold each tracked layer's input and the autograd edge of its output. A backward pass then runs over activations
only: autograd is asked for gradients of the layers' outputs and never of a parameter, so the weight-gradient products
of an ordinary backward pass do not happen, and layers below the first tracked one are not differentiated at all.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.utils.hooks import RemovableHandle

from influence_engine.errors import ModelError
from influence_engine.gradients.factors import LayerGradient, concatenate
from influence_engine.gradients.layers import Layer
from influence_engine.models.first_token_head import first_position_only
from influence_engine.tasks import Batch, Task


class Trace:
    """The outputs of one forward pass, and the inputs and autograd edges that its layers' gradients need.

    Attributes:
        outputs: What ``Task.outputs`` returned, with its graph.
        batch: The batch of the forward pass, on the model's device.
    """

    def __init__(self, layers: Sequence[Layer], batch: Batch, batch_size: int) -> None:
        self.batch = batch
        self.batch_size = batch_size
        self.outputs: Tensor = torch.empty(0)
        self._layers = layers
        self._calls: list[tuple[int, Tensor, int, GradientEdge]] = []

    def record_call(self, number: int, inputs: Tensor, output: Tensor) -> None:
        """Records one call of layer ``number``, with its input and output; called by the hooks."""
        self._calls.append((number, inputs, inputs._version, get_gradient_edge(output)))

    def layer_gradients(self, scalars: Tensor, *, keep_graph: bool = False) -> dict[str, LayerGradient]:
        """Per-example gradients of ``scalars`` ``[B]`` by layer name; scalar ``b`` depends on example ``b`` only.

        Args:
            scalars: The loss or the measurement of each example, or any other function of ``outputs``.
            keep_graph: Whether further scalars of the same forward pass will follow.

        Raises:
            ModelError: a layer's input was overwritten in place after the layer ran.
        """
        return self.gradients_along(
            self.outputs, torch.autograd.grad(scalars.sum(), self.outputs, retain_graph=True)[0], keep_graph=keep_graph
        )

    def gradients_along(
        self, outputs: Tensor, direction: Tensor, *, keep_graph: bool = False
    ) -> dict[str, LayerGradient]:
        """Per-example gradients of ``<direction_b, outputs_b>``; ``direction`` has the shape of ``outputs``."""
        return self.gradients_of_calls(self.output_gradients(outputs, direction, keep_graph=keep_graph))

    def gradients_of_calls(self, calls: Iterable[tuple[Layer, Tensor, Tensor]]) -> dict[str, LayerGradient]:
        """The same from what ``output_gradients`` gave."""
        parts: dict[str, list[LayerGradient]] = {}
        for layer, inputs, gradient in calls:
            parts.setdefault(layer.name, []).append(layer.gradient(inputs, gradient, self.batch_size))
        return {name: concatenate(calls) for name, calls in parts.items()}

    def output_gradients(
        self, outputs: Tensor, direction: Tensor, *, keep_graph: bool = False
    ) -> Iterator[tuple[Layer, Tensor, Tensor]]:
        """Layer, input and gradient of ``<direction, outputs>`` at the output, of each call that the outputs need.

        Raises:
            ModelError: a layer's input was overwritten in place after the layer ran.
        """
        edges = [edge for _, _, _, edge in self._calls]
        gradients: Sequence[Tensor | None] = torch.autograd.grad(
            outputs, edges, grad_outputs=direction, retain_graph=keep_graph, allow_unused=True
        )
        for (number, inputs, version, _), gradient in zip(self._calls, gradients, strict=True):
            layer = self._layers[number]
            if gradient is None:
                continue
            if inputs._version != version:
                raise ModelError(
                    f"the input of layer {layer.name!r} was overwritten in place after the layer ran, so its gradient "
                    "cannot be computed; use the out-of-place form of that operation",
                    field=layer.name,
                )
            yield layer, inputs, gradient


@contextlib.contextmanager
def tracing(model: nn.Module, task: Task, layers: Sequence[Layer], batch: Batch) -> Iterator[Trace]:
    """Runs ``task.outputs(model, batch)`` with hooks on ``layers`` and yields the trace.

    The model runs in evaluation mode; its training mode is restored afterwards.

    Raises:
        ModelError: the outputs do not depend on any trained layer.
    """
    trace = Trace(layers, batch, next(iter(batch.values())).shape[0])
    handles: list[RemovableHandle] = []
    for number, layer in enumerate(layers):
        handles += [
            layer.module.register_forward_pre_hook(_expand_to_batch(trace), with_kwargs=True),
            layer.module.register_forward_hook(_record(trace, number), with_kwargs=True),
        ]
    was_training = model.training
    if was_training:
        model.eval()
    try:
        with torch.enable_grad(), first_position_only(model):
            trace.outputs = task.outputs(model, batch)
        for handle in handles:
            handle.remove()
        handles.clear()
        if not trace.outputs.requires_grad:
            raise ModelError("the outputs do not depend on any layer that was trained")
        yield trace
    finally:
        for handle in handles:
            handle.remove()
        if was_training:
            model.train()


def _expand_to_batch(trace: Trace) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # BERT looks positions up once for the whole batch ([1, T]) and broadcasts: the examples' gradients would be
        # summed. Looking positions up for each example keeps the gradients apart and changes no value.
        if isinstance(module, nn.Embedding) and args and args[0].shape[0] == 1 and trace.batch_size > 1:
            return (args[0].expand(trace.batch_size, *args[0].shape[1:]), *args[1:]), kwargs
        return None

    return hook


def _record(trace: Trace, number: int) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
        inputs = args[0] if args else next(iter(kwargs.values()))
        if output.requires_grad:
            trace.record_call(number, inputs.detach(), output)
            return output
        # The first trained layer: differentiation starts here. The copy lets an in-place activation follow.
        leaf = output.detach().requires_grad_()
        trace.record_call(number, inputs.detach(), leaf)
        return leaf.clone()

    return hook
