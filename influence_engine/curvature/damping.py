"""Damping: how far the training went, read from the learning rates, or from what it did to weights and loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from influence_engine.curvature.metric import Metric
from influence_engine.errors import SettingsError

_SHARE_OF_LARGEST = 0.03
"""Without record and base model: damping as a share of the largest eigenvalue, a rule of thumb."""

_SAME_START = 0.5
"""A layer whose weights have a smaller cosine with the base model's did not start there: a head that was drawn anew."""

_COMPARED = 0.5
"""Share of the trained parameters that must have started at the base model's for the way from there to say much."""


def recorded_damping(learning_rates: Sequence[float] | Tensor, *, momentum: float = 0.0) -> float:
    """``1 / sum_t eta_t`` in the optimiser's metric (with momentum ``eta / (1 - momentum)``).

    Gradient flow for a time ``tau`` reaches ``(I - e^(-tau G)) G^-1``, which ``(G + I / tau)^-1`` matches at both ends.
    """
    time = sum(float(rate) for rate in learning_rates) / (1 - momentum)
    if not time > 0:
        raise SettingsError(f"the learning rates add up to {time}; nothing was trained", field="learning_rates")
    return 1.0 / time


def travelled_damping(
    fall: float, weights: Mapping[str, Tensor], start: Mapping[str, Tensor], metric: Metric
) -> float | None:
    """``fall / |theta - theta_0|^2`` in the optimiser's metric, for a training that was not recorded.

    Gradient flow ``d theta = -D^-1 g dt`` for a time ``tau`` lowers the loss by the integral of ``g^T D^-1 g``; by
    Cauchy and Schwarz ``|theta - theta_0|^2_D`` is at most ``tau`` times that, and as much on a straight way. On
    recorded trainings it was within an eighth of ``recorded_damping`` in the recorded metric.

    Args:
        fall: Of the mean training loss, from the base model to the fine-tuned one.
        weights: The fine-tuned model's, ``[d0, d1]`` by layer name.
        start: The base model's.
        metric: By layer name.

    Returns:
        The damping; ``None`` where the loss did not fall, or most weights did not start at the base model's.
    """
    way, compared, trained = 0.0, 0, 0
    for name, matrix in weights.items():
        trained += matrix.numel()
        before = start.get(name)
        if before is None or before.shape != matrix.shape:
            continue
        there, here = before.to(matrix.device).double(), matrix.double()
        if not same_start(there, here):
            continue
        compared += matrix.numel()
        scales = metric[name].to(matrix.device)
        scale = scales.row.double().unsqueeze(1) * scales.column.double()
        way += float(((here - there) / scale).pow(2).sum())
    return fall / way if fall > 0 and way > 0 and compared >= _COMPARED * trained else None


def same_start(before: Tensor, after: Tensor) -> bool:
    """Whether a layer's weights ``after`` the training can have started at those ``before``, of the same shape.

    Those of a head that was drawn anew are others; adapters start at zero.
    """
    cosine = torch.cosine_similarity(before.double().flatten(), after.double().flatten(), dim=0)
    return not before.any() or float(cosine) >= _SAME_START


def heuristic_damping(eigenvalues: Tensor) -> float:
    """A share of the largest GGN eigenvalue, where neither a record nor the base model says more."""
    return _SHARE_OF_LARGEST * float(eigenvalues.max())
