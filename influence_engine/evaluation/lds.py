"""The linear datamodeling score (LDS; Park et al. 2023): do influences rank the effects of retraining?"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_RESAMPLES = 1000


@dataclass(frozen=True)
class Score:
    """A mean over queries with its bootstrap interval.

    Attributes:
        mean: Mean of ``per_query``.
        low: Lower end of the 90% interval over resampled queries and retrainings.
        high: Upper end of that interval.
        per_query: ``[Q]``, the score of each query.
    """

    mean: float
    low: float
    high: float
    per_query: Tensor

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def linear_datamodeling_score(influences: Tensor, removed: Tensor, measured: Tensor, *, seed: int = 0) -> Score:
    """Spearman correlation, over retrainings, of predicted and measured changes, averaged over queries.

    Args:
        influences: ``[Q, N]``, change of the measurement that training with an example made; positive supports.
        removed: ``[S, N]``, 1 where a retraining left an example out.
        measured: ``[S, Q]``, measurements after each retraining.
        seed: Seed of the bootstrap.
    """
    predicted = _predicted(influences, removed)
    per_query = spearman(predicted, measured.double())
    generator = torch.Generator().manual_seed(seed)
    retrainings, queries = measured.shape
    means = torch.empty(_RESAMPLES, dtype=torch.float64)
    for number in range(_RESAMPLES):
        rows = torch.randint(retrainings, (retrainings,), generator=generator)
        columns = torch.randint(queries, (queries,), generator=generator)
        means[number] = spearman(predicted[rows][:, columns], measured.double()[rows][:, columns]).mean()
    low, high = means.quantile(torch.tensor([0.05, 0.95], dtype=torch.float64)).tolist()
    return Score(float(per_query.mean()), low, high, per_query)


def rank_agreement(influences: Tensor, removed: Tensor, measured: Tensor) -> float:
    """The score without its interval, for choosing among many; arguments as for ``linear_datamodeling_score``."""
    return float(spearman(_predicted(influences, removed), measured.double()).mean())


def _predicted(influences: Tensor, removed: Tensor) -> Tensor:
    """Predicted changes of the measurements, ``[S, Q]``."""
    # Park et al. add up the influences of the examples that are trained on. Minus those of the examples that are left
    # out differs from that by a constant of each query, which ranks do not see.
    return -(removed.double() @ influences.double().T)


def spearman(first: Tensor, second: Tensor) -> Tensor:
    """Spearman correlation of each column, ``[columns]``; ties share their mean rank; 0 where a column is constant."""
    a, b = (_centred(_ranks(values)) for values in (first, second))
    return (a * b).sum(0) / (a.norm(dim=0) * b.norm(dim=0)).clamp_min(1e-30)


def _ranks(values: Tensor) -> Tensor:
    """Mean ranks of each column: how many are smaller, plus half of how many are equal."""
    ordered = values.T.contiguous()
    lower = torch.searchsorted(ordered.sort(dim=1).values, ordered, right=False)
    upper = torch.searchsorted(ordered.sort(dim=1).values, ordered, right=True)
    return ((lower + upper).double() / 2).T


def _centred(values: Tensor) -> Tensor:
    return values - values.mean(0)
