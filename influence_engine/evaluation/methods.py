"""The ways to attribute that an evaluation compares: ours, and what they must beat."""

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
"""Of the index's own damping; the grid of which held-out queries choose one."""


@dataclass(frozen=True)
class Attributed:
    """What one method says.

    Attributes:
        method: Its name.
        influences: ``[Q, N]``, positive supports; only ours are in the measurement's units.
        seconds: For all queries, without what is computed once (the index).
        tier: Of ours, whose numbers are in the measurement's units; None of others.
    """

    method: str
    influences: Tensor
    seconds: float
    tier: str | None = None

    def reported(self, tuning: int) -> Attributed:
        """Without the first ``tuning`` queries; the seconds are for those that remain."""
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
    """Every method on the same queries.

    Args:
        attributor: Ours.
        train: The examples of its index, in any order.
        queries: Each names its target.
        base: The model before fine-tuning, for the similarity of embeddings; left out, so is that.
        refined: Also solve for each query with passes over all training examples.
        progress: Told of these passes.

    Raises:
        TierUnavailableError: ``refined``, of an index that follows the recorded steps.
    """
    rows = in_index_order(attributor.index, attributor.task, train)
    task, model = attributor.task, attributor.model
    label, text = target_field(fields_of(task)), editable_field(task)
    signs = label is not None and label.kind == "label" and names_its_target(task)
    found = [_timed(ESTIMATED, lambda: attributor.scores(queries, "estimated"), ESTIMATED)]
    if refined:
        attributor.refine_with(train, progress=progress)
        found.append(_timed(REFINED, lambda: attributor.scores(queries, "refined"), REFINED))
    basis = attributor.index.basis
    if basis is not None:
        name = f"{REPLAYED}, {basis.width} directions"
        found.append(_timed(name, lambda: attributor.scores(queries, "replayed"), REPLAYED))

    def signed(similarity: Tensor) -> Tensor:
        return signed_by_label(similarity, rows, queries, target_name(task))

    if text is not None and signs:
        texts = [[str(one[text.name]) for one in examples] for examples in (rows, queries)]
        found.append(_timed("BM25, signed by label", lambda: signed(bm25(*texts))))
    if base is not None and signs:
        found.append(
            _timed("base embedding, signed by label", lambda: signed(embedding_similarity(base, task, rows, queries)))
        )
    products: list[Tensor] = []

    def dot() -> Tensor:
        products.extend(gradient_products(model, task, attributor.tracked, rows, queries))
        return products[0]

    found.append(_timed("gradient dot", dot))
    found.append(Attributed("gradient cosine", products[1], found[-1].seconds))
    if signs:
        found.append(
            _timed(
                "training loss, signed by label",
                lambda: signed(training_losses(model, task, rows).float().expand(len(queries), -1)),
            )
        )
    return found


def with_dampings(attributor: Attributor, queries: Sequence[Example], seconds: float) -> dict[float, Attributed]:
    """Ours at every damping of the grid; a query costs what it costs at the index's own, ``seconds`` for all.

    Nothing where the index follows the trajectory: there is no damping to choose.
    """
    if attributor.index.manifest.approximation != "final":
        return {}
    grid = [factor * attributor.index.manifest.damping for factor in DAMPING_FACTORS]
    found = attributor.scores_by_damping(queries, grid)
    return {damping: Attributed(TUNED, influences, seconds) for damping, influences in found.items()}


def _timed(method: str, compute: Callable[[], Tensor], tier: str | None = None) -> Attributed:
    start = time.perf_counter()
    influences = compute()
    if influences.is_cuda:
        torch.cuda.synchronize()
    return Attributed(method, influences, time.perf_counter() - start, tier)
