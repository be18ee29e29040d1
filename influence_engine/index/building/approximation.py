"""Which approximation of ``d theta / d w`` an index is of, and the record or base model that it is computed from."""

from __future__ import annotations

from dataclasses import dataclass

from influence_engine.errors import SettingsError
from influence_engine.index.building.provenance import Provenance
from influence_engine.index.settings import ApproximationName, IndexSettings
from influence_engine.training import Run


@dataclass(frozen=True)
class Approximation:
    """How the effect of an example's weight on the final parameters is approximated.

    Attributes:
        name: ``unrolled``, ``segments`` or ``final``; ``IndexSettings.approximation`` describes them.
        record: The run whose steps (``unrolled``) or checkpoints (``segments``) are unrolled, or none.
        segments: Number of segments of the trajectory; 0 where it has none.
    """

    name: ApproximationName
    record: Run | None = None
    segments: int = 0

    @property
    def steps(self) -> Run | None:
        """The run whose steps are unrolled one by one."""
        return self.record if self.name == "unrolled" else None

    @property
    def along_trajectory(self) -> bool:
        """Whether gradients along the training trajectory are used, not only those at the final weights."""
        return self.name != "final"


def approximation_of(settings: IndexSettings, provenance: Provenance) -> Approximation:
    """The approximation that the settings ask for; with ``auto``, the most accurate one that can be had.

    Raises:
        SettingsError: the approximation that is asked for cannot be had.
    """
    wanted, record = settings.approximation, provenance.record
    if wanted == "auto" and settings.damping is not None:
        wanted = "final"
    if wanted in ("auto", "unrolled") and record is not None and provenance.why_not_recorded is None:
        return Approximation("unrolled", record)
    if wanted in ("auto", "segments") and (record is not None or provenance.base is not None):
        return Approximation("segments", record, settings.segments)
    if wanted == "unrolled":
        raise _missing(wanted, f"there are no recorded steps: {provenance.why_not_recorded}")
    if wanted == "segments":
        raise _missing(wanted, "the base model, where the trajectory begins, is not known: name it")
    return Approximation("final")


def unless_length_unknown(approximation: Approximation, settings: IndexSettings, *, known: bool) -> Approximation:
    """The approximation, or ``final`` instead of ``segments`` where the length of the training is not known.

    Args:
        approximation: As ``approximation_of`` chose it.
        settings: How to build.
        known: Whether the length of the training is known: where the base model tells nothing of it, it is not.

    Raises:
        SettingsError: the settings ask for ``segments``.
    """
    if approximation.name != "segments" or known:
        return approximation
    if settings.approximation == "segments":
        raise _missing("segments", "the weights did not start at the base model's, or the loss is not lower than there")
    return Approximation("final")


def _missing(wanted: str, why: str) -> SettingsError:
    return SettingsError(
        f"index.approximation is {wanted!r}, but {why}; use 'auto' or 'final'", field="index.approximation"
    )
