"""Derivatives along a direction of the parameters (Jacobian-vector products), in one forward pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.autograd.forward_ad as _forward_ad
from torch import Tensor, nn
from torch.func import functional_call

from influence_engine.tasks import Batch

forward: Any = _forward_ad
"""Torch's forward-mode differentiation, which has no type annotations."""

Compute = Callable[[nn.Module, Batch], Tensor]
"""From a model and a batch to a tensor: ``Task.outputs``, for instance."""


def derivative_along(
    model: nn.Module, compute: Compute, batch: Batch, parameters: Mapping[str, Tensor], along: Mapping[str, Tensor]
) -> Tensor:
    """The directional derivative of ``compute(model, batch)``, of the shape of its result.

    Args:
        model: The model; parameters that are not named keep their values.
        compute: What is differentiated.
        batch: Its batch.
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
    """``compute`` as a module, since ``functional_call`` replaces parameters of modules only."""

    def __init__(self, model: nn.Module, compute: Compute) -> None:
        super().__init__()
        self.model, self.compute = model, compute

    def forward(self, batch: Batch) -> Tensor:
        """``compute(model, batch)``."""
        return self.compute(self.model, batch)
