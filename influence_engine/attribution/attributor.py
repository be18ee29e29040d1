"""``Attributor``: explains a model's predictions by training examples, and by what fine-tuning changed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from influence_engine.attribution.described import described
from influence_engine.attribution.groups import DEFAULT_COLUMNS, Groups
from influence_engine.attribution.parts import PartSplitter, changes_by_part
from influence_engine.attribution.quality import Errors, quality_of, refinement
from influence_engine.attribution.result import Attribution, Changes, Clock
from influence_engine.differences import BaseDifference
from influence_engine.digests import json_digest
from influence_engine.errors import ModelError, SettingsError, TierUnavailableError
from influence_engine.gradients import LayerGradient, tracing, track
from influence_engine.gradients.pooled_positions import pooled_maps
from influence_engine.index import InfluenceIndex, Polarity, top_rows
from influence_engine.index.calibration import unit_of
from influence_engine.models.frozen_prefix import CachedPrefix
from influence_engine.progress import Progress, silent
from influence_engine.refinement import Refined, Refiner
from influence_engine.resources import choose_device, to_device
from influence_engine.tasks import (
    Batch,
    CheckingTask,
    Example,
    PositionPartsTask,
    Task,
    batches_of_like_size,
    choose_targets,
    measured_gradient,
    predictions_of,
    targets_of,
    unread_part,
)

Tier = Literal["best", "estimated", "refined", "replayed", "measured"]
"""How influences are obtained: ``estimated`` from the index alone, ``replayed`` with its replay basis, ``refined`` by
a solve for every query, ``measured`` by training again (``influence_engine.counterfactual``, not this class).
``best`` is ``replayed`` where the index has a replay basis, else ``estimated``."""

MOST_EXAMPLES = 100
"""Largest ``top_k``."""


class Attributor:
    """Explains a model's predictions with an index.

    The influence of a training example on a query is the change of the query's measurement, in the measurement's units,
    that training with the example made: positive for a proponent, negative for an opponent.

    Args:
        model: The fine-tuned model; ``requires_grad`` marks what was trained, as when the index was built.
        task: The model's task.
        index: An index built for this model.
        base_model: The model before fine-tuning, for differences; left out, explanations have none.
        device: ``auto`` is the index's, to which the models are moved.

    Raises:
        DigestMismatchError: the index was built for another task.
        ModelError: a layer cannot be attributed.
        SettingsError: the index is on another device.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        index: InfluenceIndex,
        *,
        base_model: nn.Module | None = None,
        device: str = "auto",
    ) -> None:
        index.check_task(task)
        self.device = _device_of(index, device)
        self.model = model.to(self.device).eval()
        self.task = task
        self.index = index
        self.tracked = track(model, allow_left_out=bool(index.manifest.left_out))
        self._check_layers()
        self.difference = (
            None if base_model is None else BaseDifference(model, base_model.to(self.device), self.tracked)
        )
        self._groups = Groups(index, self.device)
        self._refiner: Refiner | None = None
        self._solved: tuple[str, Refined] | None = None
        self._splitter: PartSplitter | None = None

    def refine_with(self, train: Sequence[Example], *, progress: Progress = silent) -> None:
        """Makes the tier ``refined`` available: each of its answers takes passes over all training examples.

        Args:
            train: The examples that the index was built from, in any order.
            progress: Called after every batch.

        Raises:
            TierUnavailableError: the index follows the recorded steps; ``refined`` is at the final weights only.
            DigestMismatchError: the examples are not those of the index.
        """
        if self.index.manifest.approximation != "final":
            raise _unavailable("refined", self.index)
        self._refiner = Refiner(self.model, self.task, self.index, train, progress=progress)
        self._solved = None

    def attribute(
        self,
        queries: Sequence[Example],
        *,
        top_k: int = 10,
        tier: Tier = "best",
        polarity: Polarity = "both",
        group_by: Sequence[str] = DEFAULT_COLUMNS,
        parts: bool = False,
    ) -> list[Attribution]:
        """Explains queries with one forward and one backward pass for all of them.

        Args:
            queries: Examples; one that names its target is explained for that, else for what the model predicts.
            top_k: Training examples to return for each, 1 to 100; with polarity ``each``, so many of either sign.
            tier: How to obtain the influences.
            polarity: Whether to return the strongest of either sign, as many of each, or those of one sign.
            group_by: Columns of the training examples to sum influence by: ``label``, ``source``, ``licence``,
                ``consent``, or one of their metadata.
            parts: Whether to split the returned examples' influences over parts of them, and what fine-tuning changed
                over parts of the query where positions lie in such (``attribution.parts``).

        Raises:
            InputError: a query cannot be used, a column is not there, or the task names no parts; ``field`` names what
                is wrong.
            TierUnavailableError: this index cannot answer that tier; the message says why.
            SettingsError: ``top_k`` or ``polarity`` is out of range.
        """
        answered = self._tier(tier)
        if isinstance(top_k, bool) or not 1 <= top_k <= MOST_EXAMPLES:
            raise SettingsError(f"top_k is {top_k}; it must be from 1 to {MOST_EXAMPLES}", field="top_k")
        groupings = [self._groups.by(column) for column in dict.fromkeys(group_by)]
        splitter = self._part_splitter() if parts else None
        splits: list[dict[str, Any] | None] = []
        if not queries:
            return []
        clock = Clock()
        self._check(queries)
        caching = contextlib.nullcontext({}) if self.difference is None else self.difference.caching()
        nothing: list[Tensor] = []
        pooling: contextlib.AbstractContextManager[list[Tensor]] = (
            pooled_maps(self.model) if parts else contextlib.nullcontext(nothing)
        )
        with caching as cached, pooling as maps, self._trace(queries) as trace:
            batch = choose_targets(self.task, trace.outputs, trace.batch)
            measurements, direction = measured_gradient(self.task, trace.outputs, batch)
            calls = list(trace.output_gradients(trace.outputs, direction))
            gradients = trace.gradients_of_calls(calls)
        changed: Sequence[list[dict[str, Any]] | None] = [None] * len(queries)
        if parts and self.difference is not None and isinstance(self.task, PositionPartsTask):
            found = self.difference.split_by_position(calls, len(queries), maps)
            changed = changes_by_part(self.task, queries, found)
        outputs, targets = trace.outputs.detach(), targets_of(self.task, batch)
        clock.lap("gradient")
        encoded, retained = self.index.encode_with_share(gradients)
        clock.lap("encode")
        basis = self.index.basis if answered == "replayed" else None
        scores = self.index.scores(encoded, damping=None if basis is None else basis.damping)
        inside: Sequence[Tensor | None] = [None] * len(queries)
        in_basis: Sequence[float | None] = [None] * len(queries)
        if basis is not None:
            coefficients = basis.coefficients(scores)
            inside, in_basis = list(coefficients), basis.share(scores, coefficients).tolist()
            scores = basis.correct(scores, coefficients)
        slope = self._slope(answered)
        refined = self._refined(queries) if answered == "refined" else None
        if refined is None:
            scores = scores * slope
            returned = [self._top(*each, slope, top_k, polarity) for each in zip(scores, encoded, inside, strict=True)]
        else:
            estimated, scores = scores, refined.influences
            returned = [_strongest(each, top_k, polarity) for each in scores]
        clock.lap("search")
        errors = [Errors.of(self.index.calibration, answered, unit) for unit in unit_of(scores).tolist()]
        examples = described(
            self.index, self.task, returned, answered, measurements, errors, by_sign=polarity == "each"
        )
        clock.lap("fetch")
        if splitter is not None:
            damping = None if basis is None else basis.damping
            pairs = zip(encoded, examples, strict=True)
            split = [splitter.split_all(one, chosen, damping=damping, slope=slope) for one, chosen in pairs]
            examples, splits = [found for found, _ in split], [quality for _, quality in split]
            clock.lap("parts")
        changes = self._changes(batch, gradients, measurements, cached)
        predictions = predictions_of(self.task, outputs, batch)
        clock.lap("differences")
        return [
            Attribution(
                prediction=predictions[number],
                base_prediction=changes.predictions[number],
                target=targets[number],
                measurement=float(measurements[number]),
                base_measurement=changes.measurement(number),
                examples=examples[number],
                groups=[
                    group
                    for grouping in groupings
                    for group in grouping.influences(scores[number], errors[number].error_90)
                ],
                modules=changes.modules(number),
                modules_residual=changes.residual(number, float(measurements[number])),
                changed_parts=changed[number],
                tier=answered,
                quality=quality_of(
                    self.index,
                    float(scores[number].abs().sum()),
                    [example.influence for example in examples[number]],
                    float(retained[number]),
                    in_basis[number],
                    errors[number],
                    unread_part(self.task, queries[number]),
                )
                | ({} if refined is None else refinement(refined, estimated[number], number))
                | ({} if splitter is None else {"parts": splits[number]}),
                timings_ms=clock.laps,
            )
            for number in range(len(queries))
        ]

    def scores(
        self,
        queries: Sequence[Example],
        tier: Tier = "estimated",
        *,
        damping: float | None = None,
        batch_size: int = 32,
    ) -> Tensor:
        """Influence of every example of the index on each query, ``[Q, N]`` in index order, single precision.

        Influences are in units of the measurement.

        Args:
            queries: As for ``attribute``.
            tier: How to obtain the influences.
            damping: ``lambda`` in place of the index's own; influences are then not scaled by its calibration.
            batch_size: Queries of one pass.

        Raises:
            InputError, TierUnavailableError: as ``attribute``.
        """
        answered = self._tier(tier)
        if answered == "refined":
            return self._refined(queries).influences.cpu().clone()
        basis = self.index.basis if answered == "replayed" else None
        slope = self._slope(answered) if damping is None else 1.0
        if basis is not None and damping is None:
            damping = basis.damping
        scores = torch.empty(len(queries), len(self.index))
        for places, encoded in self._encoded(queries, batch_size):
            found = self.index.scores(encoded, exact=True, damping=damping)
            if basis is not None:
                found = basis.correct(found, basis.coefficients(found))
            scores[places] = found.cpu() * slope
        return scores

    def scores_by_damping(
        self, queries: Sequence[Example], dampings: Sequence[float], *, batch_size: int = 32
    ) -> dict[float, Tensor]:
        """The estimated tier's ``scores`` at each damping, from one pass over the queries."""
        scores = {damping: torch.empty(len(queries), len(self.index)) for damping in dampings}
        for places, encoded in self._encoded(queries, batch_size):
            for damping, rows in scores.items():
                rows[places] = self.index.scores(encoded, exact=True, damping=damping).cpu()
        return scores

    def measure(self, queries: Sequence[Example]) -> Tensor:
        """Measurements ``[Q]`` with their autograd graph from the trained parameters; targets as for ``attribute``."""
        self._check(queries)
        batch = to_device(self.task.collate(queries), self.device)
        outputs = self.task.outputs(self.model, batch)
        return self.task.measurement(outputs, choose_targets(self.task, outputs, batch))

    def _part_splitter(self) -> PartSplitter:
        if self._splitter is None:
            base = None if self.difference is None else self.difference.base
            self._splitter = PartSplitter(self.model, self.task, self.index, self.tracked, base)
        return self._splitter

    def _check_layers(self) -> None:
        expected = {layer.name: layer.shape for layer in self.index.manifest.layers}
        found = {layer.name: layer.shape for layer in self.tracked.layers}
        if expected != found:
            names = sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name))
            raise ModelError(
                f"the model's trained layers are not those of the index: they differ in {', '.join(names[:5])}; set "
                "requires_grad on exactly the parameters that were trained"
            )

    def _tier(self, tier: Tier) -> str:
        if tier not in get_args(Tier):
            raise SettingsError(f"tier is {tier!r}; allowed are {', '.join(get_args(Tier))}", field="tier")
        if self.index.basis is not None and tier in ("best", "replayed"):
            return "replayed"
        if tier in ("best", "estimated"):
            return "estimated"
        if tier == "refined" and self._refiner is not None:
            return "refined"
        raise _unavailable(tier, self.index)

    def _refined(self, queries: Sequence[Example]) -> Refined:
        assert self._refiner is not None  # the tier has been checked
        try:
            digest = json_digest([dict(query) for query in queries])
        except (TypeError, ValueError):  # a user's own task may have examples that are not JSON
            digest = ""
        # The last solve is cached, since whoever explains queries often wants all their scores next.
        if not digest or self._solved is None or self._solved[0] != digest:
            parts = [
                self._refiner.refine(self.measure(queries[start : start + self._refiner.at_once]))
                for start in range(0, len(queries), self._refiner.at_once)
            ]
            self._solved = digest, Refined.joined(parts)
        return self._solved[1]

    def _slope(self, tier: str) -> float:
        """Slope of measured on predicted changes that a tier's influences are scaled with; 1 without a calibration."""
        error = None if self.index.calibration is None else self.index.calibration.tiers.get(tier)
        return 1.0 if error is None else error.slope

    def _encoded(self, queries: Sequence[Example], batch_size: int) -> Iterator[tuple[list[int], Tensor]]:
        self._check(queries)
        for places in batches_of_like_size(self.task, queries, batch_size):
            with self._trace([queries[place] for place in places]) as trace:
                batch = choose_targets(self.task, trace.outputs, trace.batch)
                _, direction = measured_gradient(self.task, trace.outputs, batch)
                gradients = trace.gradients_along(trace.outputs, direction)
            yield places, self.index.encoder.encode(gradients)

    def _trace(self, queries: Sequence[Example]) -> Any:
        batch = to_device(self.task.collate(queries), self.device)
        return tracing(self.model, self.task, self.tracked.layers, batch)

    def _check(self, queries: Sequence[Example]) -> None:
        if isinstance(self.task, CheckingTask):
            for query in queries:
                self.task.check(query, labelled=False)

    def _top(
        self,
        scores: Tensor,
        encoded: Tensor,
        coefficients: Tensor | None,
        slope: float,
        top_k: int,
        polarity: Polarity,
    ) -> tuple[list[int], list[float]]:
        # Half-precision scores choose a few more candidates than asked; single precision ranks them.
        candidates = top_rows(scores, min(len(scores), top_k + 16), polarity)
        basis = None if coefficients is None else self.index.basis
        exact = self.index.scores_of(encoded, candidates, damping=None if basis is None else basis.damping)
        if basis is not None and coefficients is not None:
            exact = basis.correct(exact, coefficients, candidates)
        exact = exact * slope
        order = top_rows(exact, min(top_k, len(exact)), polarity) if len(exact) else candidates
        return candidates[order].tolist(), exact[order].tolist()

    def _changes(
        self, batch: Batch, gradients: Mapping[str, LayerGradient], measurements: Tensor, cached: CachedPrefix
    ) -> Changes:
        if self.difference is None:
            return Changes([None] * len(measurements), None, {})
        outputs, base = self.difference.measure(self.task, batch, cached)
        changes = self.difference.split(gradients)
        split = dict(zip(changes, torch.stack(list(changes.values())).tolist(), strict=True))
        return Changes(predictions_of(self.task, outputs, batch), base.tolist(), split)


def _device_of(index: InfluenceIndex, name: str) -> torch.device:
    device = index.device if name == "auto" else choose_device(name)
    if device != index.device:
        raise SettingsError(
            f"the index is on {index.device}, the model should be on {device}; open both on one device", field="device"
        )
    return device


def _unavailable(tier: str, index: InfluenceIndex) -> TierUnavailableError:
    state = index.tiers.get(tier, "not known to this index")
    return TierUnavailableError(f"tier {tier!r} cannot be had from this index: {state}", field="tier")


def _strongest(scores: Tensor, top_k: int, polarity: Polarity) -> tuple[list[int], list[float]]:
    rows = top_rows(scores, top_k, polarity)
    return rows.tolist(), scores[rows].tolist()
