"""Digests and facts of the training behind an index's model, from its record where there is one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from influence_engine.curvature import recorded_damping
from influence_engine.digests import weights_digest
from influence_engine.training import Run

NOT_RECORDED = (
    "the training was not recorded: fine-tune with `bento-audit finetune`, add RecordingCallback to your Trainer, or "
    "measure on a replayable surrogate (`bento-audit finetune --twin`)"
)

NOT_REPLAYED = "no directions have been replayed yet: bento-audit index build --directions 8"

MEASURED = "by training again: bento-audit measure, or /audit/jobs/submit of a service"

REFINED = "by passes over all training examples: bento-audit explain --tier refined, or Attributor.refine_with(train)"

ALONG_TRAJECTORY = (
    "it refines one step at the final weights (index.approximation: final), and this index follows the training "
    "trajectory"
)


def damping_of(run: Run) -> float:
    """``1 / sum of learning rates`` of a recorded run, with clipping and momentum (``curvature.recorded_damping``)."""
    optimizer = run.manifest["optimizer"]
    momentum = float(optimizer.get("momentum", 0.0)) if optimizer["type"] == "sgd" else 0.0
    return recorded_damping(run.clipped_learning_rates, momentum=momentum)


@dataclass(frozen=True)
class Provenance:
    """Digests of what an index is built from, and the facts that a record of the training adds.

    Attributes:
        digests: Of ``model``, ``base``, ``tokenizer``, ``data`` and ``task``; ``None`` where there is none.
        second_moments: Adam's, bias-corrected, by parameter name; ``None`` for other optimisers or without a record.
        epsilon: Adam's, in the units of a gradient.
        damping: ``1 / sum of learning rates``, clipping included; ``None`` without a record.
        run: Folder of the record.
        record: The run itself.
        base: The model before a training that was not recorded, where it is known.
        why_not_recorded: Why replayed answers cannot be had, where they cannot.
    """

    digests: Mapping[str, str | None]
    second_moments: Mapping[str, Tensor] | None = None
    epsilon: float = 0.0
    damping: float | None = None
    run: str | None = None
    record: Run | None = None
    base: nn.Module | None = None
    why_not_recorded: str | None = field(default=NOT_RECORDED)

    @classmethod
    def of(cls, run: Run) -> Provenance:
        """Everything that a recorded run knows."""
        return cls(
            digests=run.digests,
            second_moments=run.second_moments(),
            epsilon=run.epsilon or 0.0,
            damping=damping_of(run),
            run=str(run.folder),
            record=run,
            why_not_recorded=run.why_not_replayable,
        )

    def training_digest(self) -> dict[str, object]:
        """What the record adds, for the index's build digest."""
        moments = None if self.second_moments is None else weights_digest(self.second_moments)
        return {"second_moments": moments, "epsilon": self.epsilon, "damping": self.damping}

    def tiers(self, approximation: str) -> dict[str, str]:
        """Each tier of an index of that approximation: ``available``, or what is missing for it."""
        return {
            "estimated": "available",
            "refined": REFINED if approximation == "final" else ALONG_TRAJECTORY,
            "replayed": self.why_not_recorded or NOT_REPLAYED,
            "measured": self.why_not_recorded or MEASURED,
        }
