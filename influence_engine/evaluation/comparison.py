"""An evaluation: every method against honest retrainings, at several removals, with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from influence_engine.attribution.attributor import Attributor
from influence_engine.errors import SettingsError
from influence_engine.evaluation.lds import linear_datamodeling_score, rank_agreement, spearman
from influence_engine.evaluation.methods import Attributed, attribute_all, with_dampings
from influence_engine.evaluation.removals import Removal, membership, random_removals
from influence_engine.evaluation.truth import Kind, Retraining
from influence_engine.index.calibration import Calibration, covered, slope_of, unit_of
from influence_engine.names import did_you_mean
from influence_engine.progress import Progress, silent


@dataclass(frozen=True)
class EvaluationPlan:
    """What an evaluation retrains.

    Attributes:
        fractions: Shares of the training examples that a removal takes.
        subsets: Retrainings at each fraction.
        kinds: What counts as truth; see ``truth.Kind``.
        tuning: So many first queries choose the damping and are not reported; ``None`` is a quarter of them.
        single: Examples left out one at a time, half of them the strongest of the reported queries, half random.
        leave_out: Ids of others to leave out one at a time.
        refined: Also evaluate the refined tier; needs an index of approximation ``final``.
        seed: Of the random removals.
    """

    fractions: Sequence[float] = (0.05,)
    subsets: int = 40
    kinds: Sequence[Kind] = ("removal",)
    tuning: int | None = None
    single: int = 0
    leave_out: Sequence[str] = ()
    refined: bool = False
    seed: int = 0

    @property
    def retrainings(self) -> int:
        """How many there are in all."""
        return len(self.fractions) * self.subsets * len(self.kinds) + self.single + len(set(self.leave_out))

    def tuning_of(self, queries: int) -> int:
        """How many of so many queries choose the damping.

        Raises:
            SettingsError: none would, or none would be left to report.
        """
        tuning = queries // 4 if self.tuning is None else self.tuning
        if not 0 < tuning < queries:
            raise SettingsError(
                f"{tuning} of {queries} queries are for choosing the damping; some must be, and some be left to report",
                field="tuning",
            )
        return tuning

    def check(self, example_ids: Sequence[str]) -> None:
        """Checks that the examples to leave out are there.

        Raises:
            SettingsError: one is not; the message names it.
        """
        known = set(example_ids)
        for example_id in self.leave_out:
            if example_id not in known:
                raise SettingsError(
                    f"no training example has the id {example_id!r}.{did_you_mean(example_id, example_ids)}",
                    field="leave_out",
                )


@dataclass(frozen=True)
class LdsRow:
    """One method against one kind of truth.

    Attributes:
        lds: The linear datamodeling score, with the 90% interval from ``low`` to ``high``.
        slope: Of measured on predicted changes; only of ours, which have units.
        coverage: Share of the measured changes within the 90% intervals that the index's answers have; None where it
            was not checked.
    """

    method: str
    kind: Kind
    fraction: float
    retrainings: int
    lds: float
    low: float
    high: float
    ms_a_query: float
    slope: float | None = None
    coverage: float | None = None


@dataclass(frozen=True)
class SingleRemovals:
    """Estimated against measured change for examples left out one at a time.

    Attributes:
        examples: How many.
        rank_correlation: Over examples, mean over queries.
        signs_right: Share of estimates above the median size whose sign is the measured one.
        slope: Of measured on estimated, through zero; 1 means right units.
        example_ids: ``K``, those that were named first.
        estimated: ``[K][Q]``, for a plot.
        measured: ``[K][Q]``.
    """

    examples: int
    rank_correlation: float
    signs_right: float
    slope: float
    example_ids: list[str] = field(repr=False)
    estimated: list[list[float]] = field(repr=False)
    measured: list[list[float]] = field(repr=False)


@dataclass(frozen=True)
class Evaluation:
    """All that an evaluation found.

    Attributes:
        queries: Reported ones.
        examples: Training examples.
        rows: By truth, best method first.
        approximation: The index's: ``unrolled``, ``segments`` or ``final``.
        damping: Of the index's manifest.
        damping_tuned: What the tuning queries chose, by kind and fraction; only for ``final``.
        single: Where examples were left out one at a time.
    """

    queries: int
    examples: int
    rows: list[LdsRow]
    approximation: str
    damping: float
    damping_tuned: dict[str, float]
    single: SingleRemovals | None

    def to_dict(self) -> dict[str, Any]:
        """As a JSON value."""
        return asdict(self)


def evaluate(
    attributor: Attributor,
    retraining: Retraining,
    plan: EvaluationPlan,
    *,
    base: nn.Module | None = None,
    progress: Progress = silent,
) -> Evaluation:
    """Compares all methods with retrainings of the recorded run.

    Args:
        attributor: Of the run's model.
        retraining: With the queries, tuning ones first; what it has measured before is not measured again.
        plan: What to retrain.
        base: See ``methods.attribute_all``.
        progress: Told of every method; ``retraining`` has its own.

    Raises:
        SettingsError: the plan leaves no query to report, a fraction removes nothing, or no example has one of the ids.
        TierUnavailableError: the refined tier of an index that follows the recorded steps.
    """
    queries = retraining.queries
    tuning = plan.tuning_of(len(queries))
    ids = attributor.index.example_ids
    plan.check(ids)
    removals = {fraction: random_removals(ids, fraction, plan.subsets, seed=plan.seed) for fraction in plan.fractions}
    progress("attributing", 0, 2)
    methods = attribute_all(attributor, retraining.train, queries, base=base, refined=plan.refined, progress=progress)
    progress("attributing", 1, 2)
    grid = with_dampings(attributor, queries, methods[0].seconds)
    progress("attributing", 2, 2)
    recorded, calibration = retraining.recorded(), attributor.index.calibration
    rows: list[LdsRow] = []
    tuned: dict[str, float] = {}
    for kind in plan.kinds:
        for fraction, chosen in removals.items():
            removed = membership(chosen, ids)
            measured = retraining.measurements(chosen, kind)
            compared = list(methods)
            if grid:
                first = measured[:, :tuning]
                tried = {d: rank_agreement(one.influences[:tuning], removed, first) for d, one in grid.items()}
                best = max(tried, key=lambda damping: tried[damping])
                tuned[f"{kind}/{fraction:g}"] = best
                compared.append(grid[best])
            context = _Context(kind, fraction, removed, measured[:, tuning:], recorded[tuning:], calibration)
            found = [_row(one.reported(tuning), context) for one in compared]
            rows += sorted(found, key=lambda row: -row.lds)
    return Evaluation(
        queries=len(queries) - tuning,
        examples=len(ids),
        rows=rows,
        approximation=attributor.index.manifest.approximation,
        damping=attributor.index.manifest.damping,
        damping_tuned=tuned,
        single=_single(methods[0], retraining, recorded, ids, plan, tuning) if plan.single or plan.leave_out else None,
    )


@dataclass(frozen=True)
class _Context:
    kind: Kind
    fraction: float
    removed: Tensor
    measured: Tensor
    recorded: Tensor
    calibration: Calibration | None


def _row(one: Attributed, truth: _Context) -> LdsRow:
    score = linear_datamodeling_score(one.influences, truth.removed, truth.measured)
    row = LdsRow(
        method=one.method,
        kind=truth.kind,
        fraction=truth.fraction,
        retrainings=len(truth.removed),
        lds=score.mean,
        low=score.low,
        high=score.high,
        ms_a_query=1000 * one.seconds / len(one.influences),
    )
    if one.tier is None:
        return row
    predicted, changes = truth.removed @ one.influences.double().T, truth.recorded - truth.measured
    error = None if truth.calibration is None else truth.calibration.tiers.get(one.tier)
    within = None
    if error is not None:
        within = covered(error, predicted, changes, truth.removed.sum(1), unit_of(one.influences))
    return replace(row, slope=slope_of(predicted, changes), coverage=within)


def single_removals(plan: EvaluationPlan, influences: Tensor, example_ids: Sequence[str]) -> list[Removal]:
    """The examples that an evaluation leaves out one at a time.

    Args:
        plan: Names some, and says how many others.
        influences: ``[Q, N]``, estimated, of the reported queries.
        example_ids: ``N``, in the order of ``influences``.
    """
    named = list(dict.fromkeys(plan.leave_out))
    taken = set(named)
    order = influences.abs().mean(0).argsort(descending=True).tolist()
    strongest = [example_ids[row] for row in order if example_ids[row] not in taken][: (plan.single + 1) // 2]
    taken.update(strongest)
    others = [example_id for example_id in example_ids if example_id not in taken]
    generator = torch.Generator().manual_seed(plan.seed)
    drawn = torch.randperm(len(others), generator=generator)[: plan.single - len(strongest)].tolist()
    return [Removal.of([example_id]) for example_id in [*named, *strongest, *(others[place] for place in drawn)]]


def _single(
    ours: Attributed,
    retraining: Retraining,
    recorded: Tensor,
    ids: Sequence[str],
    plan: EvaluationPlan,
    tuning: int,
) -> SingleRemovals:
    influences = ours.influences[tuning:].double()
    chosen = single_removals(plan, influences, ids)
    measured = recorded[tuning:] - retraining.measurements(chosen)[:, tuning:]
    estimated = membership(chosen, ids) @ influences.T
    large = estimated.abs() >= estimated.abs().median()
    return SingleRemovals(
        examples=len(chosen),
        rank_correlation=float(spearman(estimated, measured).mean()),
        signs_right=float((estimated.sign() == measured.sign())[large].double().mean()),
        slope=slope_of(estimated, measured),
        example_ids=[example_id for removal in chosen for example_id in removal.example_ids],
        estimated=estimated.tolist(),
        measured=measured.tolist(),
    )


def by_truth(rows: Sequence[LdsRow]) -> Mapping[tuple[Kind, float], list[LdsRow]]:
    """Rows by kind of truth and fraction, as they come."""
    grouped: dict[tuple[Kind, float], list[LdsRow]] = {}
    for row in rows:
        grouped.setdefault((row.kind, row.fraction), []).append(row)
    return grouped
