"""Where in a layer the inner product of an example's gradient and a direction of the weights comes from.

A layer's weights enter its output linearly (``W x``, a convolution, a scaled normalised input, a row of a table). The
inner product of an example's weight gradient with a direction ``V`` is therefore the inner product of the gradient at
the layer's output with what the layer would put out if its weights were ``V``; and that is a sum over positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from influence_engine.gradients.layers import Layer, normalises_channels_first
from influence_engine.gradients.pooled_positions import over_positions
from influence_engine.gradients.trace import Trace
from influence_engine.gradients.tracked import TrackedLayers

CHANNELS_FIRST = (nn.Conv2d, nn.GroupNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
"""Layers whose output has its channels before its positions, ``[B, C, ...]``; all others have them last."""


def has_channels_first(module: nn.Module) -> bool:
    """Whether a layer's output has its channels before its positions."""
    return isinstance(module, CHANNELS_FIRST) or normalises_channels_first(module)


def products_by_position(
    trace: Trace,
    outputs: Tensor,
    direction: Tensor,
    tracked: TrackedLayers,
    along: Mapping[str, Tensor],
    maps: Sequence[Tensor] = (),
) -> list[tuple[str, Tensor]]:
    """Inner products of each example's gradient with a direction of the weights, by call of a layer and position.

    Args:
        trace: A forward pass of the batch.
        outputs: Its outputs, with their graph.
        direction: At the outputs, of their shape: the gradients are those of ``<direction_b, outputs_b>``.
        tracked: The layers of the trace.
        along: The direction of the weights, ``[d0, d1]`` by layer name; a layer that is missing counts as zero.
        maps: Feature maps that the model pools (``pooled_positions``): layers on their means split over them.

    Returns:
        For each call the layer's name and ``[B, *positions]``. All of an example's numbers sum to the inner product of
        its whole gradient with ``along``.
    """
    return products_of_calls(trace.output_gradients(outputs, direction), trace.batch_size, tracked, along, maps)


def products_of_calls(
    calls: Iterable[tuple[Layer, Tensor, Tensor]],
    batch_size: int,
    tracked: TrackedLayers,
    along: Mapping[str, Tensor],
    maps: Sequence[Tensor] = (),
) -> list[tuple[str, Tensor]]:
    """The same from what ``Trace.output_gradients`` gave, where that is at hand already."""
    some = next(iter(along.values()))
    weights = tracked.parameters_of(
        {layer.name: along.get(layer.name, some.new_zeros(layer.shape)) for layer in tracked.layers}
    )
    return [
        (layer.name, products)
        for layer, inputs, gradient in calls
        if layer.name in along
        for products in _by_position(layer, weights, inputs, gradient, batch_size, maps)
    ]


def summed_by_part(
    products: Iterable[tuple[str, Tensor]],
    numbers: Callable[[tuple[int, ...]], Tensor],
    batch_size: int,
    count: int,
) -> Tensor:
    """Sums of products over the positions of each part, ``[B, count]``.

    Args:
        products: As ``products_by_position`` returns them.
        numbers: For the shape of a layer's positions the parts that they lie in, ``[B, *positions]``.
        batch_size: ``B``.
        count: The most parts that an example has.
    """
    total: Tensor | None = None
    for _, found in products:
        total = found.new_zeros(batch_size, count) if total is None else total
        parts = numbers(tuple(found.shape[1:])).to(found.device)
        total.scatter_add_(1, parts.reshape(batch_size, -1), found.reshape(batch_size, -1).to(total))
    assert total is not None  # the outputs depend on a trained layer
    return total


def _by_position(
    layer: Layer,
    weights: Mapping[str, Tensor],
    inputs: Tensor,
    gradient: Tensor,
    batch_size: int,
    maps: Sequence[Tensor],
) -> Sequence[Tensor]:
    module, prefix = layer.module, f"{layer.name}." if layer.name else ""
    zeros = {name: torch.zeros_like(one) for name, one in module.named_parameters(recurse=False)}
    given = {name.removeprefix(prefix): weights[name] for name in layer.parameters()}
    if inputs.is_floating_point():
        given = {name: one.to(inputs) for name, one in given.items()}
    own = {**zeros, **given}
    pooled = over_positions(module, inputs, gradient, own, maps)
    if pooled is not None:
        return pooled
    if isinstance(module, nn.Embedding) and module.padding_idx is not None:
        own["weight"] = own["weight"].index_fill(0, torch.tensor([module.padding_idx], device=own["weight"].device), 0)
    with torch.no_grad():
        # Less what it puts out at zero: some normalisations scale by one plus their weight.
        moved = functional_call(module, own, (inputs,)) - functional_call(module, zeros, (inputs,))
    found = (moved * gradient).sum(1 if has_channels_first(module) else -1)
    return [found.reshape(batch_size, -1) if found.shape[0] != batch_size else found]
