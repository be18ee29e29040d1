"""How far an index's influences were from real retraining, and the intervals that follow from it.

The error of a predicted change after ``n`` examples are taken out is modelled as ``a sqrt(n) u + b |predicted| + c n
u``, with ``u`` the root mean square of the query's influences: errors of single examples add up like independent ones,
what is far from the recorded weights is off by a share, and without many of its examples training takes another way.
``a`` and ``b`` are chosen so that nine in ten of the measured changes lie within it, and the intervals are as narrow as
that allows (split conformal, with one more free number); then ``c`` so that this holds for a large set, too.
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

TRUSTED_AGREEMENT = 0.5
"""With less, predicted and measured changes have too little in common for a slope between them to be one."""

GOOD_AGREEMENT = 0.8
"""With less, indexes were seen to fall below what they are good for (an LDS of 0.8)."""

LINEAR_ENOUGH = 0.4
"""With more nonlinearity, even the exact derivative was seen to say less than nine tenths of what retraining does."""

QUITE_LINEAR = 0.25
"""With more, exact replay itself was seen to fall below what it is good for (an LDS of 0.95)."""

_SHARES = tuple(step / 20 for step in range(21))


class TierError(BaseModel):
    """How far one tier was from retraining.

    Attributes:
        spread: ``a``.
        share: ``b``.
        bend: ``c``.
        agreement: Cosine of predicted and measured changes, over all of them.
        slope: What influences are multiplied with, so that their sums are what was measured; 1 where they have too
            little in common to say.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    spread: float
    share: float
    bend: float = 0.0
    agreement: float
    slope: float

    def error_90(self, examples: int, unit: float, influence: float) -> float:
        """Half of the 90% interval around the summed ``influence`` of so many examples; ``unit`` is ``u``."""
        return float(self.half_width(examples, unit, abs(influence)))

    def half_width(self, examples: Any, unit: Any, size: Any) -> Any:
        """The same of numbers or tensors; ``size`` is the absolute influence."""
        return self.spread * examples**0.5 * unit + self.share * size + self.bend * examples * unit


class Calibration(BaseModel):
    """What training again without some examples said about an index.

    Attributes:
        about: What it belongs to.
        retrainings: How often the recorded steps were executed without some examples.
        queries: Held-out inputs that were measured each time.
        nonlinearity: ``|d(1) - 2 d(1/2)| / |d(1)|`` for the changes ``d`` after taking a set of examples out, and after
            halving its weight: 0 where training responds linearly to its examples, as every influence assumes.
        tiers: By tier.
        smoother: What to change about the training where ``nonlinearity`` is too large, in words.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    about: dict[str, str]
    retrainings: int
    queries: int
    nonlinearity: float
    tiers: dict[str, TierError]
    smoother: str = smoothness_advice(None)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes it, whole or not at all."""
        write_json(path, self.model_dump(mode="json"))

    @classmethod
    def load(cls, path: str | os.PathLike[str], about: Mapping[str, str]) -> Calibration | None:
        """Reads what ``save`` wrote; ``None`` where there is none, or one that belongs to something else.

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
    """The slope that brings predictions to what was measured, and the narrowest intervals that hold nine in ten.

    Args:
        predicted: ``[S, Q]``, summed influences, not calibrated yet, of what each of ``S`` retrainings left out, on
            ``Q`` queries.
        measured: ``[S, Q]``, measurement with them less the one without them.
        examples: ``[S]``, how many were left out.
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
    """The error with the least ``bend`` that has nine in ten changes within the intervals when many examples go.

    Args:
        error: From smaller sets.
        predicted: ``[Q]``, summed influences, not calibrated yet, of the large set.
        measured: ``[Q]``, as for ``fit_error``.
        examples: How many the set has.
        units: ``[Q]``, as for ``fit_error``.
    """
    predicted, units = error.slope * predicted.double(), error.slope * units.double()
    missed = (measured.double() - predicted).abs() - error.half_width(examples, units, predicted.abs())
    bend = (missed.clamp_min(0) / (examples * units).clamp_min(1e-30)).quantile(LEVEL)
    return error.model_copy(update={"bend": error.bend + float(bend)})


def slope_of(predicted: Tensor, measured: Tensor) -> float:
    """Of measured on predicted changes, through zero; 1 means right units."""
    predicted, measured = predicted.double(), measured.double()
    return float((predicted * measured).sum() / predicted.pow(2).sum().clamp_min(1e-30))


def covered(error: TierError, predicted: Tensor, measured: Tensor, examples: Tensor, units: Tensor) -> float:
    """Share of the measured changes within the intervals; ``predicted`` and ``units`` are of calibrated influences."""
    half = error.half_width(examples.double().unsqueeze(1), units.double(), predicted.double().abs())
    return float(((measured.double() - predicted.double()).abs() <= half).double().mean())


def unit_of(scores: Tensor) -> Tensor:
    """``u`` of each query, ``[Q]``: the root mean square of its influences ``[Q, N]``."""
    return scores.pow(2).mean(-1).sqrt()
