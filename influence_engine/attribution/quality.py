"""The quality of an explanation: intervals, shares and warnings that say how far it can be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from influence_engine.index import InfluenceIndex
from influence_engine.index.building.retention import LITTLE
from influence_engine.index.calibration import GOOD_AGREEMENT, LINEAR_ENOUGH, Calibration, TierError
from influence_engine.refinement import Refined


@dataclass(frozen=True)
class Errors:
    """Intervals around one query's influences.

    Attributes:
        calibration: The index's calibration, where it was checked against retraining.
        tier: How far the tier that answers was from retraining, where that is known.
        unit: Root mean square of the query's influences.
    """

    calibration: Calibration | None
    tier: TierError | None
    unit: float

    @classmethod
    def of(cls, calibration: Calibration | None, tier: str, unit: float) -> Errors:
        """The intervals of a tier, by its name."""
        return cls(calibration, None if calibration is None else calibration.tiers.get(tier), unit)

    def error_90(self, examples: int, influence: float) -> float | None:
        """Half of the 90% interval around the summed ``influence`` of so many examples."""
        return None if self.tier is None else self.tier.error_90(examples, self.unit, influence)


def quality_of(
    index: InfluenceIndex,
    total: float,
    returned: Sequence[float],
    retained: float,
    in_basis: float | None,
    errors: Errors,
    unread: str | None = None,
) -> dict[str, Any]:
    """The quality entry of an explanation: how far it can be trusted.

    Args:
        index: The index that answered.
        total: Sum of all absolute influences.
        returned: Influences of the returned examples.
        retained: Share of the query's gradient that the index keeps.
        in_basis: Share of the squared estimates that replayed directions span.
        errors: Intervals around this query's influences.
        unread: What of the query the model did read, in words, where that is not all of it.

    Returns:
        ``share_returned``: share of ``total`` that the returned examples carry; ``share_in_basis`` (``None`` if
        estimated); ``retained``; ``outside_index``: whether that is less than for all but one in a hundred of held-out
        examples (``None`` where none were given); ``error_90``: half of the 90% interval around the summed influence
        of the returned examples, and ``agreement``: cosine of predicted and measured changes in the index's check
        (both ``None`` where it was not checked); ``warnings``: what makes the answer doubtful, in words.
    """
    usual = index.manifest.retained.get("p01")
    outside = None if usual is None else retained < usual
    return {
        "share_returned": sum(map(abs, returned)) / total if total > 0 else 0.0,
        "share_in_basis": in_basis,
        "retained": retained,
        "outside_index": outside,
        "error_90": errors.error_90(len(returned), sum(returned)),
        "agreement": None if errors.tier is None else errors.tier.agreement,
        "warnings": _warnings(errors, index.manifest.influence_kept, outside, unread),
    }


def _warnings(errors: Errors, influence_kept: float | None, outside: bool | None, unread: str | None) -> list[str]:
    found = [] if unread is None else [unread]
    if influence_kept is not None and influence_kept < LITTLE:
        found.append(
            f"the index keeps {influence_kept:.0%} of the influence on held-out examples; a larger index.dimensions or "
            "index.coordinates keeps more"
        )
    if outside:
        found.append("the input is unlike the training examples: the index keeps little of its gradient")
    if outside is None:
        found.append(
            "not known whether the input is like the training examples: the index was built without held-out examples "
            "to compare it with (data.validation)"
        )
    if errors.calibration is not None and errors.calibration.nonlinearity > LINEAR_ENOUGH:
        found.append(
            f"training responds unevenly to its examples (nonlinearity {errors.calibration.nonlinearity:.2f}): "
            f"influences are rough; {errors.calibration.smoother}"
        )
    if errors.calibration is not None and errors.calibration.surrogate is not None:
        found.append(f"intervals are from training a surrogate again, not this model: {errors.calibration.surrogate}")
    if errors.tier is not None and errors.tier.agreement < GOOD_AGREEMENT:
        agreement = f"{errors.tier.agreement:.2f}"
        found.append(f"in the index's check, predicted and retrained changes had a cosine of {agreement} only")
    return found


def refinement(refined: Refined, estimated: Tensor, number: int) -> dict[str, Any]:
    """The entry of a refined explanation's quality on its solve.

    Args:
        refined: The solve's results for a batch of queries.
        estimated: ``[N]``, the index's estimates of the query's influences.
        number: The query's place in the batch.

    Returns:
        ``refinement``: the ``passes`` over the training examples; the ``last_change`` of the influences by a pass,
        relative to them; and ``agreement_with_estimated``, the cosine with the index's influences.
    """
    agreement = torch.cosine_similarity(refined.influences[number], estimated, dim=0)
    found = {
        "passes": refined.passes,
        "last_change": float(refined.changes[number]),
        "agreement_with_estimated": float(agreement),
    }
    return {"refinement": found}
