"""The attribution methods that an evaluation compares: the index's tiers, and the baselines that they must beat."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from influence_engine.attribution.attributor import Attributor
from influence_engine.evaluation.baselines import (
    bm25,
    embedding_similarity,
    gradient_products,
    signed_by_label,
    training_losses,
)
from influence_engine.index.ordering import in_index_order
from influence_engine.progress import Progress, silent
from influence_engine.tasks import Example, editable_field, fields_of, names_its_target, target_field, target_name

ESTIMATED = "estimated"
REFINED = "refined"
REPLAYED = "replayed"
TUNED = "estimated, damping tuned"
DAMPING_FACTORS = (0.1, 0.3, 1.0, 3.0, 10.0)
"""Multiples of the index's damping, of which tuning queries choose one."""


@dataclass(frozen=True)
class Attributed:
    """The influences that one method gives.

    Attributes:
        method: Name of the method.
        influences: ``[Q, N]``, positive supports; in the measurement's units for the index's tiers only.
        seconds: Time for all queries, without what is computed once (the index).
        tier: The tier of the index; None for baselines.
    """

    method: str
    influences: Tensor
    seconds: float
    tier: str | None = None

    def reported(self, tuning: int) -> Attributed:
        """The influences without the first ``tuning`` queries; the seconds are for the queries that remain."""
        rest = self.influences[tuning:]
        return replace(self, influences=rest, seconds=self.seconds * len(rest) / len(self.influences))


def attribute_all(
    attributor: Attributor,
    train: Sequence[Example],
    queries: Sequence[Example],
    *,
    base: nn.Module | None = None,
    refined: bool = False,
    progress: Progress = silent,
) -> list[Attributed]:
    """The influences of every method on the same queries; the estimated tier comes first.

    Args:
        attributor: Attributor of the index whose tiers are compared.
        train: The examples of its index, in any order.
        queries: Queries, each of which names its target.
        base: The model before fine-tuning, for the similarity of embeddings; left out, so is that baseline.
        refined: Also the refined tier, which takes passes over all training examples.
        progress: Called during these passes.

    Raises:
        TierUnavailableError: ``refined``, of an index that follows the recorded steps.
    """
    rows = in_index_order(attributor.index, attributor.task, train)
    task, model = attributor.task, attributor.model
    label, text = target_field(fields_of(task)), editable_field(task)
    signs = label is not None and label.kind == "label" and names_its_target(task)
    methods = [_timed(ESTIMATED, lambda: attributor.scores(queries, "estimated"), ESTIMATED)]
    if refined:
        attributor.refine_with(train, progress=progress)
        methods.append(_timed(REFINED, lambda: attributor.scores(queries, "refined"), REFINED))
    basis = attributor.index.basis
    if basis is not None:
        name = f"{REPLAYED}, {basis.width} directions"
        methods.append(_timed(name, lambda: attributor.scores(queries, "replayed"), REPLAYED))

    def signed(similarity: Tensor) -> Tensor:
        return signed_by_label(similarity, rows, queries, target_name(task))

    if text is not None and signs:
        texts = [[str(example[text.name]) for example in examples] for examples in (rows, queries)]
        methods.append(_timed("BM25, signed by label", lambda: signed(bm25(*texts))))
    if base is not None and signs:
        methods.append(
            _timed("base embedding, signed by label", lambda: signed(embedding_similarity(base, task, rows, queries)))
        )
    products: list[Tensor] = []

    def dot() -> Tensor:
        products.extend(gradient_products(model, task, attributor.tracked, rows, queries))
        return products[0]

    methods.append(_timed("gradient dot", dot))
    methods.append(Attributed("gradient cosine", products[1], methods[-1].seconds))
    if signs:
        methods.append(
            _timed(
                "training loss, signed by label",
                lambda: signed(training_losses(model, task, rows).float().expand(len(queries), -1)),
            )
        )
    return methods


def with_dampings(attributor: Attributor, queries: Sequence[Example], seconds: float) -> dict[float, Attributed]:
    """The estimated tier's influences at every damping of the grid.

    Args:
        attributor: As for ``attribute_all``.
        queries: As for ``attribute_all``.
        seconds: Time for all queries at the index's own damping; at another one it is the same.

    Returns:
        Influences by damping; nothing where the index follows the trajectory, which leaves no damping to choose.
    """
    if attributor.index.manifest.approximation != "final":
        return {}
    grid = [factor * attributor.index.manifest.damping for factor in DAMPING_FACTORS]
    scores = attributor.scores_by_damping(queries, grid)
    return {damping: Attributed(TUNED, influences, seconds) for damping, influences in scores.items()}


def _timed(method: str, compute: Callable[[], Tensor], tier: str | None = None) -> Attributed:
    start = time.perf_counter()
    influences = compute()
    if influences.is_cuda:
        torch.cuda.synchronize()
    return Attributed(method, influences, time.perf_counter() - start, tier)
