"""The one front door: explains predictions by the training examples and the changes that made them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from influence_engine.differences import BaseDifference
from influence_engine.errors import ModelError, SettingsError, TierUnavailableError
from influence_engine.gradients import LayerGradient, tracing, track
from influence_engine.index import InfluenceIndex, Polarity, top_rows
from influence_engine.prefix import Kept
from influence_engine.resources import choose_device, to_device
from influence_engine.tasks import Batch, CheckingTask, Example, PredictingTask, Task, describe_task

Tier = Literal["best", "estimated", "refined", "replayed", "measured"]
"""How influences are obtained; ``best`` is the highest that the index holds ready."""

MOST_EXAMPLES = 100
"""Largest ``top_k``."""


@dataclass(frozen=True)
class Influential:
    """One training example of an explanation.

    Attributes:
        rank: 1 is the strongest.
        row: In the index.
        influence: Change of the measurement that having had this example in training made; positive supports.
        polarity: ``proponent`` or ``opponent``.
        tier: How the influence was obtained.
        fields: The task's fields of the example, such as its text.
    """

    rank: int
    row: int
    example_id: str
    example_handle: str
    influence: float
    polarity: Literal["proponent", "opponent"]
    tier: str
    label: str | None
    source: str | None
    fields: dict[str, Any]


@dataclass(frozen=True)
class Attribution:
    """Why one prediction came out as it did.

    Attributes:
        prediction: ``label``, ``confidence``, ``scores`` of the fine-tuned model, where the task can say.
        base_prediction: The same of the base model, where it is known.
        target: Label whose measurement is explained, where the task has labels.
        measurement: Of the fine-tuned model, in its own units (log-odds for a classification).
        base_measurement: Of the base model.
        examples: The most influential training examples, strongest first.
        groups: By label: ``share`` of the sum of all absolute influences, and the signed sum ``influence``.
        modules: First-order split of ``measurement - base_measurement`` over layers, largest first.
        modules_residual: What the first-order split leaves of that difference.
        tier: Of the influences.
        quality: ``share_returned``: share of the sum of all absolute influences that the returned examples carry;
            ``share_in_basis``: share of the squared estimates that replayed directions span (``None`` if estimated);
            ``retained``: share of the query's gradient that the index keeps; ``outside_index``: whether that is less
            than for all but one in a hundred of held-out examples (``None`` where none were given).
        timings_ms: Of the batch that the query was answered in.
    """

    prediction: dict[str, Any] | None
    base_prediction: dict[str, Any] | None
    target: str | None
    measurement: float
    base_measurement: float | None
    examples: list[Influential]
    groups: list[dict[str, Any]]
    modules: list[dict[str, Any]]
    modules_residual: float | None
    tier: str
    quality: dict[str, Any]
    timings_ms: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """As a JSON value."""
        return asdict(self)


class Attributor:
    """Explains a model's predictions with an index.

    Args:
        model: The fine-tuned model; ``requires_grad`` marks what was trained, as when the index was built.
        task: Its task.
        index: An index built for this model.
        base_model: The model before fine-tuning, for differences; left out, explanations have none.
        device: ``auto`` is the GPU where there is one.

    Raises:
        DigestMismatchError: the index was built for another task.
        ModelError: a layer cannot be attributed.
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
        index.check_task(describe_task(task))
        self.device = choose_device(device)
        self.model = model.to(self.device).eval()
        self.task = task
        self.index = index
        self.tracked = track(model, allow_left_out=bool(index.manifest.left_out))
        self._check_layers()
        self.difference = (
            None if base_model is None else BaseDifference(model, base_model.to(self.device), self.tracked)
        )
        self._groups, self._group_of = _grouped(index.labels, self.device)

    def attribute(
        self,
        queries: Sequence[Example],
        *,
        top_k: int = 10,
        tier: Tier = "best",
        polarity: Polarity = "both",
    ) -> list[Attribution]:
        """Explains queries with one forward and one backward pass for all of them.

        Args:
            queries: Examples; one that names a label is explained for that label, else for what the model predicts.
            top_k: Training examples to return for each, 1 to 100.
            tier: How to obtain the influences.
            polarity: Which to return.

        Raises:
            InputError: a query cannot be used; ``field`` names what is wrong.
            TierUnavailableError: this index cannot answer that tier; the message says why.
            SettingsError: ``top_k`` or ``polarity`` is out of range.
        """
        answered = self._tier(tier)
        if isinstance(top_k, bool) or not 1 <= top_k <= MOST_EXAMPLES:
            raise SettingsError(f"top_k is {top_k}; it must be from 1 to {MOST_EXAMPLES}", field="top_k")
        if not queries:
            return []
        clock = _Clock()
        keeping = contextlib.nullcontext({}) if self.difference is None else self.difference.keeping()
        with keeping as kept, self._trace(queries) as trace:
            batch = _with_targets(trace.batch, trace.outputs)
            measured = self.task.measurement(trace.outputs, batch)
            gradients = trace.layer_gradients(measured)
        outputs, measured = trace.outputs.detach(), measured.detach()
        clock.lap("gradient")
        encoded, retained = self.index.encoder.encode_and_weigh(gradients)
        clock.lap("encode")
        basis = self.index.basis if answered == "replayed" else None
        scores = self.index.scores(encoded, damping=None if basis is None else basis.damping)
        parts: Sequence[Tensor | None] = [None] * len(queries)
        in_basis: Sequence[float | None] = [None] * len(queries)
        if basis is not None:
            coefficients = basis.coefficients(scores)
            parts, in_basis = list(coefficients), basis.share(scores, coefficients).tolist()
            scores = basis.correct(scores, coefficients)
        found = [self._top(*each, top_k, polarity) for each in zip(scores, encoded, parts, strict=True)]
        clock.lap("search")
        examples = self._fetch(found, answered)
        clock.lap("fetch")
        changes = self._changes(batch, gradients, measured, kept)
        predictions = self._predictions(outputs, batch)
        clock.lap("differences")
        return [
            Attribution(
                prediction=predictions[number],
                base_prediction=changes.predictions[number],
                target=self._target(batch, number),
                measurement=float(measured[number]),
                base_measurement=changes.measurement(number),
                examples=examples[number],
                groups=self._group_shares(scores[number]),
                modules=changes.modules(number),
                modules_residual=changes.residual(number, float(measured[number])),
                tier=answered,
                quality=self._quality(scores[number], examples[number], float(retained[number]), in_basis[number]),
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

        Args:
            queries: As for ``attribute``.
            tier: How to obtain the influences.
            damping: In place of the index's own; see ``InfluenceIndex.scores``.
            batch_size: Queries of one pass.

        Raises:
            InputError, TierUnavailableError: as ``attribute``.
        """
        basis = self.index.basis if self._tier(tier) == "replayed" else None
        if basis is not None and damping is None:
            damping = basis.damping
        parts = []
        for encoded in self._encoded(queries, batch_size):
            found = self.index.scores(encoded, exact=True, damping=damping)
            if basis is not None:
                found = basis.correct(found, basis.coefficients(found))
            parts.append(found.cpu())
        return torch.cat(parts) if parts else torch.empty(0, len(self.index))

    def scores_by_damping(
        self, queries: Sequence[Example], dampings: Sequence[float], *, batch_size: int = 32
    ) -> dict[float, Tensor]:
        """The estimated tier's ``scores`` at each damping, from one pass over the queries."""
        parts: dict[float, list[Tensor]] = {damping: [] for damping in dampings}
        for encoded in self._encoded(queries, batch_size):
            for damping, found in parts.items():
                found.append(self.index.scores(encoded, exact=True, damping=damping).cpu())
        return {damping: torch.cat(found) for damping, found in parts.items()}

    def measure(self, queries: Sequence[Example]) -> Tensor:
        """Measurements ``[Q]`` with their graph from the trained parameters; targets as for ``attribute``."""
        batch = self._batch(queries)
        outputs = self.task.outputs(self.model, batch)
        return self.task.measurement(outputs, _with_targets(batch, outputs))

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
        state = self.index.tiers.get(tier, "not known to this index")
        raise TierUnavailableError(f"tier {tier!r} cannot be had from this index: {state}", field="tier")

    def _encoded(self, queries: Sequence[Example], batch_size: int) -> Iterator[Tensor]:
        for start in range(0, len(queries), batch_size):
            with self._trace(queries[start : start + batch_size]) as trace:
                batch = _with_targets(trace.batch, trace.outputs)
                gradients = trace.layer_gradients(self.task.measurement(trace.outputs, batch))
            yield self.index.encoder.encode(gradients)

    def _trace(self, queries: Sequence[Example]) -> Any:
        return tracing(self.model, self.task, self.tracked.layers, self._batch(queries))

    def _batch(self, queries: Sequence[Example]) -> Batch:
        if isinstance(self.task, CheckingTask):
            for query in queries:
                self.task.check(query, labelled=False)
        return to_device(self.task.collate(queries), self.device)

    def _top(
        self, scores: Tensor, encoded: Tensor, coefficients: Tensor | None, top_k: int, polarity: Polarity
    ) -> tuple[list[int], list[float]]:
        # Half-precision scores choose a few more candidates than asked; single precision ranks them.
        candidates = top_rows(scores, min(len(scores), top_k + 16), polarity)
        basis = None if coefficients is None else self.index.basis
        exact = self.index.scores_of(encoded, candidates, damping=None if basis is None else basis.damping)
        if basis is not None and coefficients is not None:
            exact = basis.correct(exact, coefficients, candidates)
        order = top_rows(exact, min(top_k, len(exact)), polarity) if len(exact) else candidates
        return candidates[order].tolist(), exact[order].tolist()

    def _fetch(self, found: Sequence[tuple[list[int], list[float]]], tier: str) -> list[list[Influential]]:
        wanted = sorted({row for rows, _ in found for row in rows})
        known = dict(zip(wanted, self.index.describe(wanted), strict=True))
        return [
            [
                Influential(
                    rank=rank,
                    row=row,
                    influence=influence,
                    polarity="proponent" if influence >= 0 else "opponent",
                    tier=tier,
                    **known[row],
                )
                for rank, (row, influence) in enumerate(zip(rows, influences, strict=True), 1)
            ]
            for rows, influences in found
        ]

    def _changes(self, batch: Batch, gradients: Mapping[str, LayerGradient], measured: Tensor, kept: Kept) -> _Changes:
        if self.difference is None:
            return _Changes([None] * len(measured), None, {})
        outputs, base = self.difference.measure(self.task, batch, kept)
        changes = self.difference.split(gradients)
        split = dict(zip(changes, torch.stack(list(changes.values())).tolist(), strict=True))
        return _Changes(self._predictions(outputs, batch), base.tolist(), split)

    def _predictions(self, outputs: Tensor, batch: Batch) -> Sequence[dict[str, Any] | None]:
        if isinstance(self.task, PredictingTask):
            return self.task.predictions(outputs, batch)
        return [None] * outputs.shape[0]

    def _target(self, batch: Batch, number: int) -> str | None:
        labels = getattr(self.task, "labels", None)
        chosen = batch.get("labels")
        if labels is None or chosen is None or chosen.dim() != 1:
            return None
        return str(labels[int(chosen[number])])

    def _group_shares(self, scores: Tensor) -> list[dict[str, Any]]:
        count = len(self._groups)
        absolute = torch.zeros(count, device=scores.device).scatter_add_(0, self._group_of, scores.abs())
        signed = torch.zeros(count, device=scores.device).scatter_add_(0, self._group_of, scores)
        shares = (absolute / absolute.sum().clamp_min(1e-30)).tolist()
        return [
            {"group": group, "share": share, "influence": influence}
            for group, share, influence in zip(self._groups, shares, signed.tolist(), strict=True)
        ]

    def _quality(
        self, scores: Tensor, examples: Sequence[Influential], retained: float, in_basis: float | None
    ) -> dict[str, Any]:
        total = float(scores.abs().sum())
        returned = sum(abs(example.influence) for example in examples)
        usual = self.index.manifest.retained.get("p01")
        return {
            "share_returned": returned / total if total > 0 else 0.0,
            "share_in_basis": in_basis,
            "retained": retained,
            "outside_index": None if usual is None else retained < usual,
        }


@dataclass(frozen=True)
class _Changes:
    predictions: Sequence[dict[str, Any] | None]
    base: list[float] | None
    split: Mapping[str, list[float]]

    def measurement(self, number: int) -> float | None:
        return None if self.base is None else self.base[number]

    def modules(self, number: int) -> list[dict[str, Any]]:
        changes = [{"module": name, "change": change[number]} for name, change in self.split.items()]
        return sorted(changes, key=lambda change: -abs(change["change"]))

    def residual(self, number: int, measured: float) -> float | None:
        if self.base is None:
            return None
        return measured - self.base[number] - sum(change[number] for change in self.split.values())


class _Clock:
    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = (now - self._last) * 1000
        self._last = now


def _with_targets(batch: Batch, outputs: Tensor) -> Batch:
    """The batch with the model's own prediction as target where a query names none.

    So that the base model is measured on the same target; a task without labels measures what its batch says.
    """
    labels = batch.get("labels")
    if labels is None or labels.dim() != 1 or outputs.dim() != 2:
        return batch
    return {**batch, "labels": torch.where(labels < 0, outputs.detach().argmax(-1), labels)}


def _grouped(labels: Sequence[str | None], device: torch.device) -> tuple[list[str], Tensor]:
    names = ["" if label is None else label for label in labels]
    groups = sorted(set(names))
    numbers = {group: number for number, group in enumerate(groups)}
    return groups, torch.tensor([numbers[name] for name in names], dtype=torch.long, device=device)
