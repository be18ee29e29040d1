"""Damping ``lambda``: one over the length of the training, from its learning rates or from what it did to the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from influence_engine.curvature.preconditioner import Preconditioner
from influence_engine.errors import SettingsError

_SHARE_OF_LARGEST = 0.03
"""Without record and base model: damping as a share of the largest eigenvalue, a rule of thumb."""

_MIN_COSINE = 0.5
"""A layer with a smaller cosine to the base model's weights was initialised anew: a fresh head, for instance."""

_MIN_COMPARED = 0.5
"""Share of the trained parameters that must have started at the base model's for the distance to mean anything."""


def recorded_damping(learning_rates: Sequence[float] | Tensor, *, momentum: float = 0.0) -> float:
    """``lambda = 1 / sum_t eta_t`` in preconditioned coordinates; with momentum, ``eta_t / (1 - momentum)``.

    Gradient flow for a time ``tau = sum_t eta_t`` on a quadratic reaches ``(I - e^(-tau G)) G^-1`` of the gradient,
    which ``(G + I / tau)^-1`` equals in the limits of small and of large eigenvalues; Bae et al. 2024 compare
    SOURCE with damped influence functions in the same way, and scale with momentum likewise (appendix D.2).

    Raises:
        SettingsError: the learning rates add up to nothing.
    """
    time = sum(float(rate) for rate in learning_rates) / (1 - momentum)
    if not time > 0:
        raise SettingsError(f"the learning rates add up to {time}; nothing was trained", field="learning_rates")
    return 1.0 / time


def displacement_damping(
    fall: float, weights: Mapping[str, Tensor], start: Mapping[str, Tensor], preconditioner: Preconditioner
) -> float | None:
    """``lambda = fall / |theta - theta_0|_D^2``, for a training that was not recorded.

    This project's own derivation: gradient flow ``d theta = -D^-1 g dt`` for a time ``tau`` lowers the loss by the
    integral of ``g^T D^-1 g``; by Cauchy and Schwarz ``|theta - theta_0|_D^2`` is at most ``tau`` times that, and
    equals it on a linear path, so that ``1 / tau`` is estimated. On recorded trainings the estimate was within an
    eighth of ``recorded_damping``.

    Args:
        fall: By how much the mean training loss is lower for the fine-tuned model than for the base model.
        weights: The fine-tuned model's, ``[d0, d1]`` by layer name.
        start: The base model's, likewise.
        preconditioner: By layer name.

    Returns:
        The damping; ``None`` where the loss did not fall, or most weights did not start at the base model's.
    """
    distance, compared, trained = 0.0, 0, 0
    for name, matrix in weights.items():
        trained += matrix.numel()
        before = start.get(name)
        if before is None or before.shape != matrix.shape:
            continue
        first, last = before.to(matrix.device).double(), matrix.double()
        if not same_initialisation(first, last):
            continue
        compared += matrix.numel()
        scales = preconditioner[name].to(matrix.device)
        scale = scales.row.double().unsqueeze(1) * scales.column.double()
        distance += float(((last - first) / scale).pow(2).sum())
    return fall / distance if fall > 0 and distance > 0 and compared >= _MIN_COMPARED * trained else None


def same_initialisation(before: Tensor, after: Tensor) -> bool:
    """Whether a layer's trained weights ``after`` can have been initialised with the base model's weights ``before``.

    A head that was initialised anew has a small cosine to the base model's; adapters, which start at zero, are
    accepted. Both tensors have the same shape.
    """
    cosine = torch.cosine_similarity(before.double().flatten(), after.double().flatten(), dim=0)
    return not before.any() or float(cosine) >= _MIN_COSINE


def heuristic_damping(eigenvalues: Tensor) -> float:
    """A share of the largest GGN eigenvalue: a rule of thumb where neither a record nor the base model says more."""
    return _SHARE_OF_LARGEST * float(eigenvalues.max())
