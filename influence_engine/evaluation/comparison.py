"""Compares attribution methods with retraining: the linear datamodeling score of each, with bootstrap intervals."""

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
    """The retrainings of an evaluation, and the methods that it compares with them.

    Attributes:
        fractions: Shares of the training examples that a removal takes.
        subsets: Retrainings at each fraction.
        kinds: Kinds of retraining that are taken as ground truth: the recorded steps (``removal``), or a new order
            (``afresh``).
        tuning: Number of first queries that choose the damping and are not reported; ``None`` is a quarter of all.
        single: Examples left out one at a time, half of them the strongest of the reported queries, half random.
        leave_out: Ids of further examples to leave out one at a time.
        refined: Also evaluate the refined tier; needs an index of approximation ``final``.
        seed: Seed of the random removals.
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
        """Number of retrainings in all."""
        return len(self.fractions) * self.subsets * len(self.kinds) + self.single + len(set(self.leave_out))

    def tuning_of(self, queries: int) -> int:
        """How many of so many queries choose the damping.

        Raises:
            SettingsError: no query would choose it, or none would be left to report.
        """
        tuning = queries // 4 if self.tuning is None else self.tuning
        if not 0 < tuning < queries:
            raise SettingsError(
                f"{tuning} of {queries} queries are for choosing the damping; some must be, and some be left to report",
                field="tuning",
            )
        return tuning

    def check(self, example_ids: Sequence[str]) -> None:
        """Checks that the examples to leave out exist.

        Raises:
            SettingsError: one does not; the message names it.
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
    """The linear datamodeling score of one method against one ground truth.

    Attributes:
        method: Name of the method.
        kind: Kind of retraining.
        fraction: Share of the training examples that each retraining left out.
        retrainings: Number of retrainings.
        lds: The score, with the 90% interval from ``low`` to ``high``.
        ms_a_query: Milliseconds that the method took for a query.
        slope: Slope of measured on predicted changes; only for the index's tiers, whose influences have units.
        coverage: Share of the measured changes within the 90% intervals of the index's answers; None where the index
            was not checked against retraining.
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
        examples: Number of examples, ``K``.
        rank_correlation: Spearman correlation over examples, mean over queries.
        signs_right: Share of the estimates above the median size that have the measured sign.
        slope: Slope of measured on estimated changes, through zero; 1 means right units.
        example_ids: ``K`` ids; the examples that the plan names come first.
        estimated: Estimated changes, ``[K][Q]``, for a plot.
        measured: Measured changes, ``[K][Q]``.
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
    """The results of an evaluation.

    Attributes:
        queries: Number of queries reported.
        examples: Number of training examples.
        rows: One for each method and ground truth, grouped by the latter, best method first.
        approximation: The index's: ``unrolled``, ``segments`` or ``final``.
        damping: The index's damping.
        damping_tuned: Dampings that the tuning queries chose, by kind and fraction; only for ``final``.
        single: Results for examples left out one at a time, where the plan has such.
    """

    queries: int
    examples: int
    rows: list[LdsRow]
    approximation: str
    damping: float
    damping_tuned: dict[str, float]
    single: SingleRemovals | None

    def to_dict(self) -> dict[str, Any]:
        """The results as a JSON value."""
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
        attributor: Attributor of the run's model and index.
        retraining: Retrainings of the run with the queries, tuning queries first; cached measurements are used again.
        plan: Which retrainings to take.
        base: The model before fine-tuning, for the similarity of embeddings; left out, so is that baseline.
        progress: Called after every step; ``retraining`` has its own.

    Raises:
        SettingsError: the plan leaves no query to report, a fraction removes nothing, or no example has an id it names.
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
                scores = {d: rank_agreement(one.influences[:tuning], removed, first) for d, one in grid.items()}
                best = max(scores, key=lambda damping: scores[damping])
                tuned[f"{kind}/{fraction:g}"] = best
                compared.append(grid[best])
            truth = _GroundTruth(kind, fraction, removed, measured[:, tuning:], recorded[tuning:], calibration)
            compared_rows = [_row(one.reported(tuning), truth) for one in compared]
            rows += sorted(compared_rows, key=lambda row: -row.lds)
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
class _GroundTruth:
    """Retrainings that methods are compared with: ``removed`` is ``[S, N]``, ``measured`` ``[S, Q]``."""

    kind: Kind
    fraction: float
    removed: Tensor
    measured: Tensor
    recorded: Tensor
    calibration: Calibration | None


def _row(one: Attributed, truth: _GroundTruth) -> LdsRow:
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
        plan: Names some of them, and says how many others there are.
        influences: ``[Q, N]``, estimated influences on the reported queries.
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
    estimates: Attributed,
    retraining: Retraining,
    recorded: Tensor,
    ids: Sequence[str],
    plan: EvaluationPlan,
    tuning: int,
) -> SingleRemovals:
    influences = estimates.influences[tuning:].double()
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
    """Rows by kind of retraining and fraction, in their order."""
    grouped: dict[tuple[Kind, float], list[LdsRow]] = {}
    for row in rows:
        grouped.setdefault((row.kind, row.fraction), []).append(row)
    return grouped
