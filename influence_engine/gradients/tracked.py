"""Finds the layers that hold a model's trainable parameters, and refuses those without per-example gradients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from influence_engine.errors import ModelError
from influence_engine.gradients.layers import Layer, layer_for


@dataclass(frozen=True)
class TrackedLayers:
    """The layers with trained parameters, through which influence is computed.

    Attributes:
        layers: In the model's order.
        left_out: Sizes of trainable parameters that no layer covers, by name.
        parameters: Number of trainable parameters, covered or not.
    """

    layers: tuple[Layer, ...]
    left_out: Mapping[str, int]
    parameters: int

    @property
    def share_left_out(self) -> float:
        """Share of the trainable parameters that no layer covers."""
        return sum(self.left_out.values()) / self.parameters

    def matrices(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors given by parameter name, laid out as one matrix ``[d0, d1]`` for each layer, by layer name."""
        return {layer.name: layer.matrix(parameters) for layer in self.layers}

    def parameters_of(self, matrices: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The inverse of ``matrices``: tensors of the parameters' shapes, by parameter name."""
        return {
            name: _part(matrices[layer].contiguous(), shape, strides, offset)
            for name, (layer, shape, strides, offset) in self._places.items()
        }

    @cached_property
    def _places(self) -> dict[str, tuple[str, torch.Size, tuple[int, ...], int]]:
        """Where each parameter's values are in its layer's matrix: the layer, and the strides and offset there."""
        return {name: (layer.name, *place) for layer in self.layers for name, place in _places_in(layer).items()}


def _part(matrix: Tensor, shape: torch.Size, strides: tuple[int, ...], offset: int) -> Tensor:
    # The matrix may itself be a part of a larger tensor, such as one example's of a batch.
    found = matrix.as_strided(shape, strides, matrix.storage_offset() + offset)
    return found.clone(memory_format=torch.contiguous_format)


def _places_in(layer: Layer) -> dict[str, tuple[torch.Size, tuple[int, ...], int]]:
    """Shape, strides and offset of each parameter in a layer's matrix, from index numbers that ``layer.matrix`` lays
    out as it would values."""
    numbers: dict[str, Tensor] = {}
    count = 0
    for name, parameter in layer.parameters().items():
        numbers[name] = torch.arange(count, count + parameter.numel()).view(parameter.shape)
        count += parameter.numel()
    where = torch.empty(count, dtype=torch.long)
    where[layer.matrix(numbers).flatten()] = torch.arange(count)
    found = {}
    for name, own in numbers.items():
        places = where[own]
        first = int(places.flatten()[0])
        strides = tuple(
            int(places.select(axis, 1).flatten()[0]) - first if places.shape[axis] > 1 else 0
            for axis in range(places.dim())
        )
        assert torch.equal(torch.arange(count).as_strided(places.shape, strides, first), places), name
        found[name] = (own.shape, strides, first)
    return found


def track(model: nn.Module, *, allow_left_out: bool = False) -> TrackedLayers:
    """Finds a layer for every module with trainable parameters of its own.

    Args:
        model: Its parameters with ``requires_grad`` are the ones that were trained.
        allow_left_out: Go on without layers of unsupported kinds instead of raising.

    Raises:
        ModelError: nothing is trainable; parameters are tied between layers; or a layer is of an unsupported kind
            (the message names each with its share of the parameters).
    """
    layers: list[Layer] = []
    left_out: dict[str, int] = {}
    kinds: dict[str, str] = {}
    owners: dict[int, str] = {}
    total = 0
    for name, module in model.named_modules():
        own = {
            f"{name}.{key}" if name else key: parameter
            for key, parameter in module.named_parameters(recurse=False)
            if parameter.requires_grad
        }
        if not own:
            continue
        for key, parameter in own.items():
            if id(parameter) in owners:
                raise ModelError(
                    f"parameters {owners[id(parameter)]!r} and {key!r} are one tensor (tied); untie them before "
                    "fine-tuning, or freeze them",
                    field=key,
                )
            owners[id(parameter)] = key
            total += parameter.numel()
        layer = layer_for(name, module)
        if layer is None:
            left_out.update({key: parameter.numel() for key, parameter in own.items()})
            kinds[name] = type(module).__name__
        else:
            layers.append(layer)
    if not total:
        raise ModelError("no parameter of the model is trainable; nothing that training could have changed")
    if left_out and (not allow_left_out or not layers):
        shares = ", ".join(
            f"{name or 'the model itself'} ({kind}, "
            f"{sum(n for key, n in left_out.items() if key.rpartition('.')[0] == name) / total:.1%})"
            for name, kind in kinds.items()
        )
        raise ModelError(
            f"these layers have trainable parameters but no per-example gradients here: {shares} of the trainable "
            "parameters. Freeze them, or set index.unsupported_layers to 'leave_out' to go on without them"
        )
    return TrackedLayers(tuple(layers), left_out, total)
