"""Which approximation an index is of, and what of the training it follows."""

from __future__ import annotations

from dataclasses import dataclass

from influence_engine.errors import SettingsError
from influence_engine.index.building.provenance import Provenance
from influence_engine.index.settings import ApproximationName, IndexSettings
from influence_engine.training import Run


@dataclass(frozen=True)
class Approximation:
    """How an index gets from the examples' gradients to what they did to the final weights.

    Attributes:
        name: See ``IndexSettings``.
        record: The run whose steps (``unrolled``) or checkpoints (``segments``) are followed, or none.
        segments: Into how many the way is divided; 0 where it is not.
    """

    name: ApproximationName
    record: Run | None = None
    segments: int = 0

    @property
    def steps(self) -> Run | None:
        """The run whose steps are followed one by one."""
        return self.record if self.name == "unrolled" else None

    @property
    def followed(self) -> bool:
        """Whether anything of the way to the final weights is followed."""
        return self.name != "final"


def approximation_of(settings: IndexSettings, provenance: Provenance) -> Approximation:
    """What the settings ask for, or the best that can be had.

    Raises:
        SettingsError: what is asked for cannot be had.
    """
    wanted, record = settings.approximation, provenance.record
    if wanted == "auto" and settings.damping is not None:
        wanted = "final"
    if wanted in ("auto", "unrolled") and record is not None and provenance.why_not_recorded is None:
        return Approximation("unrolled", record)
    if wanted in ("auto", "segments") and (record is not None or provenance.base is not None):
        return Approximation("segments", record, settings.segments)
    if wanted == "unrolled":
        raise _missing(wanted, f"there are no steps to follow: {provenance.why_not_recorded}")
    if wanted == "segments":
        raise _missing(wanted, "the base model, where the way begins, is not known: name it")
    return Approximation("final")


def where_the_way_is_known(approximation: Approximation, settings: IndexSettings, known: bool) -> Approximation:
    """The approximation, or one step at the final weights where the base model says nothing of the training.

    Args:
        approximation: As chosen.
        settings: Of the index.
        known: Whether the length of the training is.

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
