"""Splits influences of training examples over parts of them: mentions of a text, regions of an image.

``<g_i, u>`` with a query's direction ``u`` (``attribution.direction``) is linear in the gradient ``g_i`` of an
example's loss. Where a task says which terms its loss is a sum of (``LossPartsTask``), each term's share is the term's
derivative along ``u``: one forward pass in forward mode gives all of them, of all examples. Where it says which
positions of the layers lie in which part (``PositionPartsTask``), one backward pass gives what each position of each
layer adds to ``<g_i, u>`` (``gradients.position_products``).

Of an index at the final weights the parts sum to the index's own influence of the example. Of one that follows the
training, and of replayed influences, they are estimates, and their sum is another estimate of that influence. One
factor for the whole answer brings these sums as near to the answer's influences as one factor can. What is left of an
influence is given beside its parts (``parts_residual``), never spread over them; how far sums and influences agree is
in the answer's quality.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from influence_engine.attribution.direction import DirectionAt, QueryDirections
from influence_engine.attribution.result import Influential
from influence_engine.errors import InputError
from influence_engine.gradients import TrackedLayers, tracing
from influence_engine.gradients.forward_mode import derivative_along
from influence_engine.gradients.pooled_positions import pooled_maps
from influence_engine.gradients.position_products import products_by_position, summed_by_part
from influence_engine.index import InfluenceIndex
from influence_engine.models.frozen_prefix import CachedPrefix, FrozenPrefix
from influence_engine.resources import to_device
from influence_engine.tasks import Batch, Example, LossPartsTask, Part, PositionPartsTask, Task, fields_of
from influence_engine.training.step import parameters_put_back, put_parameters


class PartSplitter:
    """Splits influences of an index's examples.

    Args:
        model: The fine-tuned model.
        task: Its task.
        index: The index.
        tracked: The model's layers.
        base: The model before fine-tuning, where it is known.

    Raises:
        InputError: the task names no parts; the error's ``field`` is ``include``.
    """

    def __init__(
        self, model: nn.Module, task: Task, index: InfluenceIndex, tracked: TrackedLayers, base: nn.Module | None
    ) -> None:
        if not isinstance(task, LossPartsTask | PositionPartsTask):
            raise InputError(
                f"{type(task).__name__} names no parts of an example, so influences cannot be split over them",
                field="include",
            )
        self.model, self.task, self.index, self.tracked = model, task, index, tracked
        self._parts: Any = task
        self.directions = QueryDirections(index, model, base)
        trained = [name for name, one in model.named_parameters() if one.requires_grad]
        self._prefix = FrozenPrefix(model, trained)
        self._trained = trained

    def split_all(
        self, encoded: Tensor, examples: Sequence[Influential], *, damping: float | None = None, slope: float = 1.0
    ) -> tuple[list[Influential], dict[str, Any] | None]:
        """The examples of an explanation with their influences split; those of which the index keeps no fields as they
        are.

        Args:
            encoded: The query's vector ``[k]``, from the index's encoder.
            examples: The examples.
            damping: As for ``InfluenceIndex.scores``.
            slope: What the index's own influences are multiplied with in the answer.

        Returns:
            The examples; and of the split whether it is ``exact``, the ``factor`` that all parts were multiplied with,
            and the ``agreement`` (cosine) of the sums of parts with the influences. ``None`` where nothing was split.
        """
        wanted = {field.name for field in fields_of(self.task)}
        known = [one for one in examples if wanted <= set(one.fields)]
        if not known:
            return list(examples), None
        products = self.products(encoded, [one.fields for one in known], damping=damping).double() * slope
        influences = torch.tensor([one.influence for one in known], dtype=products.dtype, device=products.device)
        sums, exact = products.sum(1), self.directions.exact and all(one.tier == "estimated" for one in known)
        factor = 1.0 if exact else _nearest_factor(sums, influences)
        quality = {"exact": exact, "factor": factor, "agreement": float(torch.cosine_similarity(sums, influences, 0))}
        products *= factor
        split: dict[int, Influential] = {}
        for one, row in zip(known, products.tolist(), strict=True):
            own = self._parts.parts(one.fields)
            # What lies behind the tokens that are read has no column where no other example has more parts.
            values = [*row, *[0.0] * len(own)]
            parts = [_described(part, influence=value) for part, value in zip(own, values, strict=False)]
            residual = one.influence - sum(part["influence"] for part in parts)
            split[one.row] = replace(one, parts=parts, parts_residual=residual)
        return [split.get(one.row, one) for one in examples], quality

    def products(self, encoded: Tensor, examples: Sequence[Example], *, damping: float | None = None) -> Tensor:
        """What the parts of each example add to its influence on one query, ``[B, P]``; 0 past an example's own."""
        batch = to_device(self.task.collate(examples), self.index.device)
        total: Tensor | None = None
        cached: CachedPrefix | None = None
        for point in self.directions.of(encoded, damping=damping):
            with self._prefix.caching() if cached is None else self._prefix.reusing(cached) as found:
                if isinstance(self.task, LossPartsTask):
                    here = self._by_loss(batch, point)
                else:
                    here = self._by_position(batch, examples, point)
            cached = cached or found
            total = here if total is None else total + here
        assert total is not None  # there is one point at least
        return total

    def _by_loss(self, batch: Batch, point: DirectionAt) -> Tensor:
        def losses(model: nn.Module, batch: Batch) -> Tensor:
            found: Tensor = self._parts.loss_parts(self.task.outputs(model, batch), batch)
            return found

        along = self.tracked.parameters_of(point.along)
        own = {name: point.weights[name] for name in along}
        return derivative_along(self.model, losses, batch, own, along)

    def _by_position(self, batch: Batch, examples: Sequence[Example], point: DirectionAt) -> Tensor:
        with parameters_put_back(self.model, self._trained):
            put_parameters(self.model, point.weights)
            with pooled_maps(self.model) as maps, tracing(self.model, self.task, self.tracked.layers, batch) as trace:
                losses = self.task.loss(trace.outputs, trace.batch)
                (direction,) = torch.autograd.grad(losses.sum(), trace.outputs, retain_graph=True)
                found = products_by_position(trace, trace.outputs, direction, self.tracked, point.along, maps)
        return _summed(self._parts, examples, found)


def changes_by_part(
    task: PositionPartsTask, queries: Sequence[Example], found: Sequence[tuple[str, Tensor]]
) -> list[list[dict[str, Any]]]:
    """What fine-tuning changed about each query's measurement, over the query's parts, to first order.

    Args:
        task: Says which positions lie in which part.
        queries: The queries.
        found: As ``BaseDifference.split_by_position`` returns it.
    """
    rows = _summed(task, queries, found).tolist()
    return [
        [_described(part, change=change) for part, change in zip(task.parts(query), row, strict=False)]
        for query, row in zip(queries, rows, strict=True)
    ]


def _summed(task: PositionPartsTask, examples: Sequence[Example], found: Sequence[tuple[str, Tensor]]) -> Tensor:
    def numbers(shape: tuple[int, ...]) -> Tensor:
        return torch.stack([task.parts_of_positions(one, shape).flatten() for one in examples])

    return summed_by_part(found, numbers, len(examples), max(len(task.parts(one)) for one in examples))


def _nearest_factor(sums: Tensor, influences: Tensor) -> float:
    """What to multiply sums with to come nearest to the influences; 1 where only a reversal of their signs would."""
    factor = float((sums * influences).sum() / sums.square().sum().clamp_min(1e-30))
    return factor if factor > 0 else 1.0


def _described(part: Part, **number: float) -> dict[str, Any]:
    return {"field": part.field, "start": part.start, "end": part.end, "label": part.label, **number}
