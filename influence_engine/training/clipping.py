"""Gradient clipping by global norm, as a differentiable function and its reverse derivative."""

from __future__ import annotations

import torch
from torch import Tensor

from influence_engine.training.optimizers import Parameters


def gradient_norm(gradients: Parameters) -> Tensor:
    """The Euclidean norm of all gradients together, a scalar."""
    return torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients.values()]))


def clipped(gradients: Parameters, max_norm: float | None) -> tuple[Parameters, Tensor]:
    """Scales gradients down to a global norm of ``max_norm`` (Pascanu et al. 2013, algorithm 1).

    The formula is that of ``torch.nn.utils.clip_grad_norm_``, with its ``1e-6``, but out of place and differentiable.

    Returns:
        The scaled gradients, and the factor that they were scaled by: a scalar, 1 where they were short enough.
    """
    if max_norm is None:
        return gradients, torch.ones(())
    norm = gradient_norm(gradients)
    factor = torch.clamp(max_norm / (norm + 1e-6), max=1.0)
    return {name: gradient * factor for name, gradient in gradients.items()}, factor


def clipping_adjoint(derivatives: Parameters, gradients: Parameters, norm: float, max_norm: float | None) -> Parameters:
    """The reverse derivative of ``clipped``: from derivatives by its results to those by its inputs, in place.

    With ``f = max_norm / (n + 1e-6)`` and ``n = |g|``, a derivative ``d`` by ``f g`` becomes
    ``f d - max_norm / ((n + 1e-6)^2 n) <d, g> g`` by ``g``.

    Args:
        derivatives: ``[K, *shape]`` by name, of ``K`` scalars with respect to the clipped gradients.
        gradients: The gradients before clipping.
        norm: Their ``gradient_norm``, the same for all ``K`` scalars.
        max_norm: As given to ``clipped``.
    """
    if max_norm is None or max_norm / (norm + 1e-6) > 1.0:
        return derivatives
    factor, slope = max_norm / (norm + 1e-6), -max_norm / ((norm + 1e-6) ** 2 * norm)
    inner = [derivatives[name].flatten(1) @ gradient.flatten() for name, gradient in gradients.items()]
    along = torch.stack(inner).sum(0)
    for name, gradient in gradients.items():
        scale = (slope * along).view(-1, *[1] * gradient.ndim)
        derivatives[name].mul_(factor).addcmul_(scale, gradient)
    return derivatives
