"""How well a ranking puts the examples that are looked for first, with intervals.

A ranking is what it found: ``[N]`` truth values, the first-ranked example first. Intervals are by bootstrap over the
examples: they say what other examples would have changed, not what another training or other errors would have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

_RESAMPLES = 1000


@dataclass(frozen=True)
class Figure:
    """A share or a probability.

    Attributes:
        value: Of the ranking as it is.
        low: Lower end of the 90% interval over resampled examples.
        high: Its upper end.
    """

    value: float
    low: float
    high: float


def recall(found: Tensor, share: float) -> float:
    """Of what is looked for, the share among the first ``share`` of the ranking; by chance ``share``."""
    return float(found[: round(share * len(found))].sum() / found.sum().clamp_min(1))


def average_precision(found: Tensor) -> float:
    """Mean, over what is looked for, of its share among all down to it; by chance about its share in the whole."""
    places = found.nonzero().flatten() + 1
    return float((torch.arange(1, len(places) + 1) / places).sum() / max(len(places), 1))


def area_under_curve(found: Tensor) -> float:
    """Probability that one that is looked for ranks before one that is not: under the ROC curve. By chance 0.5."""
    pairs = found.sum() * (~found).sum()
    after = (~found).flip(0).cumsum(0).flip(0)
    return float(after[found].sum() / pairs) if pairs else 0.5


def figures(found: Tensor, measures: Mapping[str, Callable[[Tensor], float]], *, seed: int = 0) -> dict[str, Figure]:
    """What each measure says of a ranking, with its interval.

    Args:
        found: ``[N]``.
        measures: By name; each is a number of such a tensor.
        seed: Of the bootstrap.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(_RESAMPLES):
        counts = torch.randint(len(found), (len(found),), generator=generator).bincount(minlength=len(found))
        resampled = found.repeat_interleave(counts)
        for name, measure in measures.items():
            drawn[name].append(measure(resampled))
    ends = torch.tensor([0.05, 0.95], dtype=torch.float64)
    result = {}
    for name, measure in measures.items():
        low, high = torch.tensor(drawn[name], dtype=torch.float64).quantile(ends).tolist()
        result[name] = Figure(measure(found), low, high)
    return result
