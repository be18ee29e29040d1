"""How far an index's influences were from real retraining, and the intervals that follow from it.

This project's own error model: after ``n`` examples are removed, the error of a predicted change is at most
``a sqrt(n) u + b |predicted| + c n u``, with ``u`` the root mean square of the query's influences. Errors of single
examples add up like independent ones (``a``), large changes are off by a share since training is not linear (``b``),
and without many of its examples training takes another trajectory (``c``). ``a`` and ``b`` are chosen so that nine in
ten of the measured changes lie within the interval while the intervals are as narrow as that allows: split conformal
prediction (Papadopoulos et al. 2002) with one more free number; then ``c`` so that the same holds for a large set.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from influence_engine.errors import IndexFormatError, RecordError
from influence_engine.files import read_json, write_json
from influence_engine.training.smoothness import smoothness_advice

LEVEL = 0.9
"""Share of the measured changes that the intervals hold."""

TRUSTED_AGREEMENT = 0.5
"""Cosine of predicted and measured changes below which a slope between them means nothing."""

GOOD_AGREEMENT = 0.8
"""Cosine of predicted and measured changes below which indexes were seen to have an LDS of less than 0.8."""

LINEAR_ENOUGH = 0.4
"""Nonlinearity above which even the exact derivative was seen to predict less than nine tenths of retraining."""

QUITE_LINEAR = 0.25
"""Nonlinearity above which exact replay itself was seen to have an LDS of less than 0.95."""

_SHARES = tuple(step / 20 for step in range(21))
"""Candidates for ``b``."""


class TierError(BaseModel):
    """How far the influences of one tier were from retraining.

    Attributes:
        spread: ``a`` of the error model.
        share: ``b``.
        bend: ``c``.
        agreement: Cosine of predicted and measured changes, over all sets and queries.
        slope: Factor that calibrates influences, so that their sums are the measured changes; 1 where ``agreement`` is
            too small for a slope.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    spread: float
    share: float
    bend: float = 0.0
    agreement: float
    slope: float

    def error_90(self, examples: int, unit: float, influence: float) -> float:
        """Half the width of the 90% interval around an ``influence`` summed over ``examples``; ``unit`` is ``u``."""
        return float(self.half_width(examples, unit, abs(influence)))

    def half_width(self, examples: Any, unit: Any, size: Any) -> Any:
        """Half the width of the interval, of numbers or tensors; ``size`` is the absolute summed influence."""
        return self.spread * examples**0.5 * unit + self.share * size + self.bend * examples * unit


class Calibration(BaseModel):
    """An index's influences against training again without some examples.

    Attributes:
        about: Digests of the index (and replay basis) that the calibration belongs to.
        retrainings: How often the recorded steps were executed without some examples.
        queries: Number of held-out inputs that were measured each time.
        nonlinearity: ``|d(1) - 2 d(1/2)| / |d(1)|`` for the changes ``d`` of the measurements after a set of examples
            is removed, and after its weight is halved: 0 where the final model is linear in the examples' weights, as
            every influence assumes.
        tiers: Errors by tier.
        smoother: Advice on changing the training where ``nonlinearity`` is too large.
        surrogate: Where not the index's model was trained again but a surrogate of it: how far the two agree.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    about: dict[str, str]
    retrainings: int
    queries: int
    nonlinearity: float
    tiers: dict[str, TierError]
    smoother: str = smoothness_advice(None)
    surrogate: str | None = None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the calibration atomically."""
        write_json(path, self.model_dump(mode="json", exclude_none=True))

    @classmethod
    def load(cls, path: str | os.PathLike[str], about: Mapping[str, str]) -> Calibration | None:
        """Reads a file that ``save`` wrote; ``None`` where there is none, or one of another index.

        Raises:
            IndexFormatError: it cannot be read.
        """
        if not Path(path).is_file():
            return None
        try:
            found = cls.model_validate(read_json(path))
        except (ValidationError, RecordError) as error:
            raise IndexFormatError(f"{path} cannot be read: {error}", field=str(path)) from error
        return found if found.about == dict(about) else None


def fit_error(predicted: Tensor, measured: Tensor, examples: Tensor, units: Tensor) -> TierError:
    """The slope between predicted and measured changes, and the narrowest intervals that hold nine in ten of them.

    Args:
        predicted: ``[S, Q]``, influences before calibration on ``Q`` queries, summed over the examples that each of
            ``S`` retrainings left out.
        measured: ``[S, Q]``, the measurement with these examples less the one without them.
        examples: ``[S]``, how many examples were left out.
        units: ``[Q]``, root mean square of each query's influences.
    """
    predicted, measured = predicted.double(), measured.double()
    agreement = float(torch.cosine_similarity(predicted.flatten(), measured.flatten(), dim=0))
    slope = slope_of(predicted, measured) if agreement >= TRUSTED_AGREEMENT else 1.0
    predicted, units = slope * predicted, slope * units
    scale = (examples.double().sqrt().unsqueeze(1) * units.double()).clamp_min(1e-30)
    missed = (measured - predicted).abs()
    size = predicted.abs()

    def spread(share: float) -> float:
        return float(((missed - share * size).clamp_min(0) / scale).flatten().quantile(LEVEL))

    def width(share: float) -> float:
        return float((spread(share) * scale + share * size).mean())

    best = min(_SHARES, key=width)
    return TierError(spread=spread(best), share=best, agreement=agreement, slope=slope)


def with_bend(error: TierError, predicted: Tensor, measured: Tensor, examples: int, units: Tensor) -> TierError:
    """The error with the least ``bend`` for which the intervals hold nine in ten changes after a large set is removed.

    Args:
        error: Fitted to smaller sets.
        predicted: ``[Q]``, influences before calibration, summed over the large set.
        measured: ``[Q]``, the measurement with the set less the one without it.
        examples: Size of the set.
        units: ``[Q]``, root mean square of each query's influences.
    """
    predicted, units = error.slope * predicted.double(), error.slope * units.double()
    missed = (measured.double() - predicted).abs() - error.half_width(examples, units, predicted.abs())
    bend = (missed.clamp_min(0) / (examples * units).clamp_min(1e-30)).quantile(LEVEL)
    return error.model_copy(update={"bend": error.bend + float(bend)})


def slope_of(predicted: Tensor, measured: Tensor) -> float:
    """Slope of the regression of measured on predicted changes, through zero; 1 means right units."""
    predicted, measured = predicted.double(), measured.double()
    return float((predicted * measured).sum() / predicted.pow(2).sum().clamp_min(1e-30))


def covered(error: TierError, predicted: Tensor, measured: Tensor, examples: Tensor, units: Tensor) -> float:
    """Share of the measured changes within the intervals; ``predicted`` and ``units`` are of calibrated influences."""
    half = error.half_width(examples.double().unsqueeze(1), units.double(), predicted.double().abs())
    return float(((measured.double() - predicted.double()).abs() <= half).double().mean())


def unit_of(scores: Tensor) -> Tensor:
    """``u`` of each query, ``[Q]``: the root mean square of its influences ``[Q, N]``."""
    return scores.pow(2).mean(-1).sqrt()
