"""Damping: how far the training went, read from the learning rates."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from influence_engine.errors import SettingsError

_SHARE_OF_LARGEST = 0.01
"""Without a record: damping as a share of the largest eigenvalue. A rule of thumb; the manifest says so."""


def recorded_damping(learning_rates: Sequence[float] | Tensor, *, momentum: float = 0.0) -> float:
    """``1 / sum_t eta_t`` in the optimiser's metric (with momentum ``eta / (1 - momentum)``).

    Gradient flow for a time ``tau`` reaches ``(I - e^(-tau G)) G^-1``, which ``(G + I / tau)^-1`` matches at both ends.
    """
    time = sum(float(rate) for rate in learning_rates) / (1 - momentum)
    if not time > 0:
        raise SettingsError(f"the learning rates add up to {time}; nothing was trained", field="learning_rates")
    return 1.0 / time


def heuristic_damping(eigenvalues: Tensor) -> float:
    """A hundredth of the largest GGN eigenvalue, for a model whose training was not recorded."""
    return _SHARE_OF_LARGEST * float(eigenvalues.max())
