"""Where a layer on pooled features reads from: a mean over a feature map is a sum over its positions.

A classifier's head sees the mean of the last feature map, ``x = sum_p h_p / P``, and enters the output linearly, so
what its weights add to an inner product of gradients splits over the positions of that map as well:
``<W x, g> = sum_p <W h_p, g> / P``. Its bias reads nothing and stays whole.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn


@contextlib.contextmanager
def pooled_maps(model: nn.Module) -> Iterator[list[Tensor]]:
    """Within it, the feature maps ``[B, C, H, W]`` that the model's pooling to one position reads are listed."""
    found: list[Tensor] = []
    hooks = [
        module.register_forward_hook(lambda _, args, output: _note(found, args[0], output))
        for module in model.modules()
        if isinstance(module, nn.AdaptiveAvgPool2d | nn.AvgPool2d)
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def over_positions(
    module: nn.Module, inputs: Tensor, gradient: Tensor, own: dict[str, Tensor], maps: Sequence[Tensor]
) -> tuple[Tensor, Tensor] | None:
    """What each position of the map that a linear layer's inputs are the mean of adds, and what the bias does.

    Args:
        module: The layer.
        inputs: ``[B, C]``.
        gradient: At its output, ``[B, out]``.
        own: The direction of its weights: ``weight``, and ``bias`` where it has one.
        maps: As ``pooled_maps`` lists them.

    Returns:
        ``[B, H, W]`` and ``[B]``; ``None`` where its inputs are no mean of a map.
    """
    if not isinstance(module, nn.Linear) or inputs.dim() != 2:
        return None
    for one in maps:
        fits = one.shape[:2] == inputs.shape and one[0, 0].numel() > 1
        if fits and torch.allclose(one.mean((2, 3)), inputs, rtol=1e-4, atol=1e-5):
            read = torch.einsum("bchw,oc,bo->bhw", one, own["weight"], gradient) / one[0, 0].numel()
            bias = own.get("bias")
            return read, gradient @ bias if bias is not None else gradient.new_zeros(len(gradient))
    return None


def _note(found: list[Tensor], inputs: Tensor, output: Tensor) -> None:
    if inputs.dim() == 4 and output.shape[2:].numel() == 1:
        found.append(inputs.detach())
