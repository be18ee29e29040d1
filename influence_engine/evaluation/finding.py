"""Retrieval metrics of a ranking of examples, with intervals: recall, average precision, area under the ROC curve.

A ranking is given by its relevance: ``[N]`` booleans, the first-ranked example first, true for an example that is
looked for. Intervals are by bootstrap over the examples: they say what other examples would have changed, not what
another training or other errors would have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

_RESAMPLES = 1000


@dataclass(frozen=True)
class Figure:
    """A metric with its interval.

    Attributes:
        value: The metric of the ranking.
        low: Lower end of the 90% interval over resampled examples.
        high: Upper end of that interval.
    """

    value: float
    low: float
    high: float


def recall(relevant: Tensor, share: float) -> float:
    """Share of the relevant examples among the first ``share`` of the ranking; by chance ``share``."""
    return float(relevant[: round(share * len(relevant))].sum() / relevant.sum().clamp_min(1))


def average_precision(relevant: Tensor) -> float:
    """Mean precision at the ranks of the relevant examples; by chance about their share of all examples."""
    places = relevant.nonzero().flatten() + 1
    return float((torch.arange(1, len(places) + 1) / places).sum() / max(len(places), 1))


def area_under_curve(relevant: Tensor) -> float:
    """Area under the ROC curve: probability that a relevant example ranks before another one; by chance 0.5."""
    pairs = relevant.sum() * (~relevant).sum()
    after = (~relevant).flip(0).cumsum(0).flip(0)
    return float(after[relevant].sum() / pairs) if pairs else 0.5


def figures(relevant: Tensor, metrics: Mapping[str, Callable[[Tensor], float]], *, seed: int = 0) -> dict[str, Figure]:
    """Metrics of a ranking with their intervals.

    Args:
        relevant: ``[N]``, the ranking's relevance.
        metrics: Functions of such a tensor, by name.
        seed: Seed of the bootstrap.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn: dict[str, list[float]] = {name: [] for name in metrics}
    for _ in range(_RESAMPLES):
        count = len(relevant)
        counts = torch.randint(count, (count,), generator=generator).bincount(minlength=count)
        resampled = relevant.repeat_interleave(counts)
        for name, metric in metrics.items():
            drawn[name].append(metric(resampled))
    ends = torch.tensor([0.05, 0.95], dtype=torch.float64)
    result = {}
    for name, metric in metrics.items():
        low, high = torch.tensor(drawn[name], dtype=torch.float64).quantile(ends).tolist()
        result[name] = Figure(metric(relevant), low, high)
    return result
