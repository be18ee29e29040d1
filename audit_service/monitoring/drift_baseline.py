"""The drift baseline: how the signals looked on held-out data, with the digests of the model and index they belong to.

It lies beside the index's vectors as ``baseline.json``, so that it travels with them, and holds shares, centres and
thresholds only: no text and no example id.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from audit_service.monitoring.metrics import CONFIDENCE_BUCKETS, TOP_SHARE_BUCKETS, bound
from audit_service.monitoring.statistics import STATISTICS, NearestCentre
from audit_service.monitoring.values import MAX_VALUES
from influence_engine.digests import json_digest
from influence_engine.errors import DigestMismatchError, RecordError
from influence_engine.files import read_json, write_json
from influence_engine.tasks import Array

FORMAT = 1
BASELINE_FILE = "reference.json"

Signal = Literal["prediction", "confidence", "embedding", "influence"]
"""The signals that are held against the baseline bin by bin."""


class Levels(BaseModel):
    """What baseline traffic stays below.

    Attributes:
        thresholds: Statistic -> volume -> value that windows of so many events or more stay below: larger windows are
            quieter, so their drift shows earlier.
    """

    model_config = ConfigDict(extra="forbid")

    thresholds: dict[str, dict[int, float]]

    def level(self, volume: float, statistic: str = "psi") -> float:
        """The threshold for a window of so many events; below the least volume, that of the least."""
        levels = self.thresholds[statistic]
        return levels[max((one for one in levels if one <= volume), default=min(levels))]

    def steps(self, statistic: str = "psi") -> list[tuple[int, float]]:
        """Volumes at which the threshold falls, with its value from there on."""
        found: list[tuple[int, float]] = []
        for volume, value in sorted(self.thresholds[statistic].items()):
            if not found or value < found[-1][1]:
                found.append((volume, value))
        return found


class OutsideIndex(Levels):
    """How often held-out inputs lie outside the index.

    Attributes:
        share: Of the explained held-out inputs.
    """

    share: float


class Distribution(Levels):
    """One signal of the baseline.

    Attributes:
        by: For influence, what groups the training examples: ``label``, ``source`` or a metadata column; else empty.
        shares: Bin -> share. Bins are labels, upper bounds of confidence, numbers of clusters, or
            ``by=group/polarity``.
    """

    by: str = ""
    shares: dict[str, float] = Field(max_length=2 * MAX_VALUES)

    def compare(self, signal: str, observed: Array, volume: int) -> dict[str, Any]:
        """Holds traffic against it, as a JSON value.

        Args:
            signal: Its name.
            observed: Shares of the bins, in their order; all zero where there was no traffic.
            volume: Events that they are of.

        Returns:
            ``signal``, ``by``, ``volume``, every statistic (``None`` without traffic), the ``threshold`` for that
            volume, the ``minimum`` volume, whether it has ``moved``, and the ``bins``.
        """
        expected = np.array(list(self.shares.values()))
        statistics = {
            name: float(statistic(observed, expected)) if observed.any() else None
            for name, statistic in STATISTICS.items()
        }
        threshold, minimum, psi = self.level(volume), min(self.thresholds["psi"]), statistics["psi"]
        return {
            "signal": signal,
            "by": self.by or None,
            "volume": volume,
            **statistics,
            "threshold": threshold,
            "minimum": minimum,
            "moved": psi is not None and volume >= minimum and psi > threshold,
            "bins": [
                {"bin": bin_, "share": float(share), "reference": before}
                for (bin_, before), share in zip(self.shares.items(), observed, strict=True)
            ],
        }


class DriftBaseline(BaseModel):
    """What ``baseline.json`` holds.

    Attributes:
        model: The label ``model``.
        model_digest: Of the weights.
        index_digest: ``build_digest`` of the index.
        tier: Tier of the explanations; sampled ones are explained with the same.
        created: When it was made, ISO 8601.
        predictions: Held-out examples that were predicted.
        explanations: Of these, how many were explained.
        minimum_predictions: Volume below which no alert fires.
        minimum_explanations: The same for influence.
        false_alarm_rate: With which baseline traffic of a threshold's volume exceeds it.
        signals: Each signal that this model has.
        influence: The signal ``influence``, once for each grouping.
        outside_index: Share of the queries outside the index, and its threshold.
        top_share: Upper bound -> share of explanations whose strongest examples carry so much.
        centres: Centres of the embedding clusters, ``[clusters, width]``; empty where the model has no features.
        outcomes: Accuracy on the held-out examples, ``{"accuracy", "by_label"}``; for back-testing.
        digest: Over all of this.
    """

    model_config = ConfigDict(extra="forbid")

    format: int = FORMAT
    model: str
    model_digest: str
    index_digest: str
    tier: str
    created: str
    predictions: int
    explanations: int
    minimum_predictions: int
    minimum_explanations: int
    false_alarm_rate: float
    signals: dict[Literal["prediction", "confidence", "embedding"], Distribution]
    influence: list[Distribution]
    outside_index: OutsideIndex | None
    top_share: dict[str, float]
    centres: list[list[float]]
    outcomes: dict[str, Any]
    digest: str = ""

    @property
    def labels(self) -> list[str]:
        """The labels it knows."""
        return list(self.signals["prediction"].shares) if "prediction" in self.signals else []

    @property
    def groups(self) -> list[str]:
        """The groups it knows, as ``by=group``."""
        return list(dict.fromkeys(bin_.rpartition("/")[0] for one in self.influence for bin_ in one.shares))

    def nearest_centre(self) -> NearestCentre | None:
        """Finds clusters; ``None`` where the model has no features."""
        return NearestCentre(np.array(self.centres, dtype=np.float32)) if self.centres else None

    def bins(self) -> Iterator[tuple[str, str, float]]:
        """Signal, bin and share of everything that ``audit_reference_share_ratio`` shows."""
        for signal, one in self.signals.items():
            yield from ((signal, bin_, share) for bin_, share in one.shares.items())
        for one in self.influence:
            yield from (("influence", bin_, share) for bin_, share in one.shares.items())
        if self.outside_index is not None:
            yield ("outside_index", "outside", self.outside_index.share)
        yield from (("top_share", bin_, share) for bin_, share in self.top_share.items())

    def content_digest(self) -> str:
        """Digest over everything but itself."""
        return json_digest(self.model_dump(mode="json", exclude={"digest"}))

    def write(self, folder: Path) -> Path:
        """Writes it beside the index's vectors; an older one is replaced once the new one is whole."""
        path = folder / BASELINE_FILE
        write_json(path, {**self.model_dump(mode="json"), "digest": self.content_digest()})
        return path


def read_baseline(folder: Path, *, model_digest: str | None, index_digest: str) -> DriftBaseline | None:
    """The baseline in an index version's folder; ``None`` where there is none.

    Raises:
        RecordError: it is damaged, or of another format.
        DigestMismatchError: it has changed since it was written, or belongs to another model or index.
    """
    path = folder / BASELINE_FILE
    if not path.is_file():
        return None
    raw = read_json(path)
    again = "Make it again: bento-audit reference build"
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        raise RecordError(f"{path} is no baseline of format {FORMAT}. {again}", field=str(path))
    try:
        baseline = DriftBaseline.model_validate(raw)
    except ValidationError as error:
        raise RecordError(f"{path} is incomplete: {error}. {again}", field=str(path)) from None
    if baseline.digest != baseline.content_digest():
        raise DigestMismatchError(f"{path} has changed since it was written. {again}", field=str(path))
    if model_digest is not None and baseline.model_digest != model_digest:
        raise DigestMismatchError(
            f"{path} is the baseline of the model with digest {baseline.model_digest}, not of this one "
            f"({model_digest}). {again}",
            field=str(path),
        )
    if baseline.index_digest != index_digest:
        raise DigestMismatchError(
            f"{path} is the baseline of the index with digest {baseline.index_digest}, not of this one "
            f"({index_digest}). {again}",
            field=str(path),
        )
    return baseline


def confidence_bin(value: float) -> str:
    """The bin of a confidence: the smallest upper bound that is not below it."""
    return bin_of(value, CONFIDENCE_BUCKETS)


def top_share_bin(value: float) -> str:
    """The bin of a top share."""
    return bin_of(value, TOP_SHARE_BUCKETS)


def bin_of(value: float, bounds: tuple[float, ...]) -> str:
    """The smallest of ``bounds`` that is not below ``value``, the last one for what exceeds all."""
    return bound(next((one for one in bounds if value <= one), bounds[-1]))
