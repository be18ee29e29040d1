"""Derivatives along a direction of the parameters, in one forward pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.autograd.forward_ad as _forward_ad
from torch import Tensor, nn
from torch.func import functional_call

from influence_engine.tasks import Batch

forward: Any = _forward_ad
"""Torch has no annotations for it."""

Compute = Callable[[nn.Module, Batch], Tensor]


def derivative_along(
    model: nn.Module, compute: Compute, batch: Batch, parameters: Mapping[str, Tensor], along: Mapping[str, Tensor]
) -> Tensor:
    """How ``compute(model, batch)`` changes along a direction of the parameters; of the shape of what it computes.

    Args:
        model: The model; parameters that are not named keep their values.
        compute: From the model and a batch to a tensor.
        batch: The batch.
        parameters: Where to differentiate, by the parameters' names.
        along: The direction, by the same names.

    Raises:
        NotImplementedError: a part of the model has no derivative in forward mode.
    """
    with torch.no_grad(), forward.dual_level():
        dual = {f"model.{name}": forward.make_dual(parameters[name].detach(), along[name]) for name in parameters}
        found = forward.unpack_dual(functional_call(_Computing(model, compute), dual, (batch,)))
        return torch.zeros_like(found.primal) if found.tangent is None else found.tangent


class _Computing(nn.Module):
    def __init__(self, model: nn.Module, compute: Compute) -> None:
        super().__init__()
        self.model, self.compute = model, compute

    def forward(self, batch: Batch) -> Tensor:
        """What is computed."""
        return self.compute(self.model, batch)
