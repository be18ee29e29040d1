"""Checks an index against its own run: a few retrainings say how far its influences can be trusted.

Some of the sets that are removed are random, as for the linear datamodeling score; others are aimed, the strongest
proponents and opponents of what held-out inputs have in common, as in questions about an explanation; one is half of
all examples, as large as a group can be. One set is also given half its weight: where training responds linearly to
the weights of its examples, that has half the effect.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from influence_engine.attribution.attributor import Attributor, Tier
from influence_engine.errors import SettingsError
from influence_engine.evaluation.removals import Removal, membership, random_removals
from influence_engine.evaluation.truth import Retraining
from influence_engine.index.calibration import Calibration, TierError, fit_error, unit_of, with_bend
from influence_engine.training.smoothness import smoothness_advice

FRACTION = 0.05
"""Share of the training examples in each random set."""

STRONGEST = 10
"""Examples in an aimed set: as many as an explanation shows. Removing the strongest twentieth of all examples changes
more than a derivative describes."""

LARGE = 0.5
"""Share of the training examples in the large set."""

RANDOM = 2
"""Number of random sets."""

AIMED = 2
"""Number of aimed sets."""

FEWEST_QUERIES = 8

RETRAININGS = RANDOM + AIMED + 1 + 1
"""One for each random and aimed set, one for the large set, one with half the weight of a random set."""


def check_index(
    attributor: Attributor, retraining: Retraining, *, seed: int = 0, surrogate: str | None = None
) -> Calibration:
    """Trains again without some examples, and stores with the index how far its influences were from what happened.

    Args:
        attributor: Attributor of the run's model and index; its answers have intervals afterwards.
        retraining: Retrainings of the same run, with held-out queries that no replayed direction was taken from.
        seed: Seed of the random sets.
        surrogate: Where not the index's model is trained again but a surrogate of it, how far the two agree.

    Raises:
        SettingsError: there are too few queries, or too few examples to take a set from.
        RecordError: the run cannot be executed again.
    """
    queries = retraining.queries
    if len(queries) < FEWEST_QUERIES:
        raise SettingsError(
            f"a check needs at least {FEWEST_QUERIES} held-out queries, there are {len(queries)}", field="queries"
        )
    index = attributor.index
    tiers: tuple[Tier, ...] = ("estimated",) if index.basis is None else ("estimated", "replayed")
    index.calibration = None  # the influences without an earlier calibration's slope are what is calibrated
    scores = {tier: attributor.scores(queries, tier) for tier in tiers}
    drawn = random_removals(index.example_ids, FRACTION, RANDOM, seed=seed)
    half = Removal.of(drawn[0].example_ids, weight=0.5)
    large = random_removals(index.example_ids, LARGE, 1, seed=seed)
    removals = [*drawn, *_aimed(scores["estimated"], index.example_ids, min(STRONGEST, len(drawn[0].example_ids)))]
    recorded = retraining.recorded()
    *without, fewer, halved = retraining.measurements([*removals, *large, half])
    changes = torch.stack([recorded - measured for measured in without])
    removed, large_removed = membership(removals, index.example_ids), membership(large, index.example_ids)

    def error_of(influences: Tensor) -> TierError:
        units = unit_of(influences)
        error = fit_error(removed @ influences.double().T, changes, removed.sum(1), units)
        (predicted,) = large_removed @ influences.double().T
        return with_bend(error, predicted, recorded - fewer, int(large_removed.sum()), units)

    calibration = Calibration(
        about=index.about_calibration(),
        retrainings=RETRAININGS,
        queries=len(queries),
        nonlinearity=nonlinearity(changes[0], recorded - halved),
        tiers={tier: error_of(influences) for tier, influences in scores.items()},
        smoother=smoothness_advice(retraining.run.settings),
        surrogate=surrogate,
    )
    index.save_calibration(calibration)
    return calibration


def _aimed(scores: Tensor, example_ids: Sequence[str], size: int) -> list[Removal]:
    """The examples that support most, and those that oppose most, what the queries have in common."""
    # The first right singular vector: the influences [N] that the queries share most.
    _, _, common = torch.linalg.svd(scores.double(), full_matrices=False)
    order = common[0].argsort().tolist()
    return [Removal.of([example_ids[row] for row in rows]) for rows in (order[:size], order[-size:])]


def nonlinearity(whole: Tensor, half: Tensor) -> float:
    """Nonlinearity ``|d(1) - 2 d(1/2)| / |d(1)|`` of the changes ``[Q]`` without a set, and with half its weight."""
    return float((whole - 2 * half).norm() / whole.norm().clamp_min(1e-30))
