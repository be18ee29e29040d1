"""Passes over examples, batch by batch, that give per-example loss gradients and rows of the GGN."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from influence_engine.curvature import (
    exact_output_curvature,
    fits_exact_curvature,
    sampled_output_gradients,
)
from influence_engine.digests import json_digest
from influence_engine.errors import ModelError, ResourceError
from influence_engine.gradients import LayerGradient, Trace, TrackedLayers, tracing
from influence_engine.gradients.shared_rows import inputs_in_common
from influence_engine.resources import SavedBytes, free_memory, out_of_memory, to_device, trim_heap, within_memory
from influence_engine.tasks import Example, Task, example_sizes

T = TypeVar("T")

Batches = Generator[tuple[list[int], list[Example]], None, None]
"""Batches of examples: the examples' positions in the data, and the examples themselves."""

FAST_TOKENS = {"cpu": 2048, "cuda": 65536}
"""Most padded positions of a batch, by device: more were slower on two cores, and took 11 GB on a GPU for two layers of
MiniLM."""

_SHARE_OF_FREE = 0.25
"""Share of the free memory that a batch may take."""

_SIZED = 2000
"""Examples that the largest size is estimated from."""

_BYTES_A_SAVED_BYTE = 4
"""Memory of a pass for each byte that autograd saves: output gradients, scaled copies and projections come on top."""


@dataclass(frozen=True)
class PulledRow:
    """One backward pass of a batch along output directions ``e``: products ``J^T e``, the *pulled-back rows*.

    Attributes:
        gradients: ``J^T e`` of each example, by layer name.
        root_curvature: ``sqrt(h)``, ``[B]``; ``sqrt(h) J^T e`` is a row ``A`` of the GGN ``G = A^T A``.
        loss: ``c``, ``[B]``; an example's loss gradient is the sum of ``c J^T e`` over its rows.
    """

    gradients: dict[str, LayerGradient]
    root_curvature: Tensor
    loss: Tensor

    @property
    def importance(self) -> Tensor:
        """``sqrt(h + c^2)``, ``[B]``: a row's weight in fitting a basis, by its curvature and its part of the loss
        gradient."""
        return (self.root_curvature.pow(2) + self.loss.pow(2)).sqrt()


@dataclass(frozen=True)
class PassCost:
    """What passes over some examples take.

    Attributes:
        single: Bytes for the longest example alone, estimated.
        mean: Bytes for an example of mean length, estimated.
        mean_size: Positions of such an example.
        batch: Bytes for the largest batch, estimated.
        rows: Pulled-back rows of one example.
        shared: Whether these mostly have their inputs in common (``gradients.shared_rows``).
    """

    single: int
    mean: int
    mean_size: float
    batch: int
    rows: int
    shared: bool


class GradientPasses:
    """Runs a model over examples batch by batch.

    Args:
        model: The fine-tuned model.
        task: The model's task.
        tracked: The layers whose gradients are taken.
        batch_tokens: Padded positions a batch; None takes as many as are fast and fit in a quarter of the free memory.
        draws: Labels drawn for each example where outputs are too many for exact curvature.
        seed: Of the drawn labels.
    """

    def __init__(
        self, model: nn.Module, task: Task, tracked: TrackedLayers, *, batch_tokens: int | None, draws: int, seed: int
    ) -> None:
        self.model = model
        self.task = task
        self.tracked = tracked
        self.batch_tokens = batch_tokens
        self.draws = draws
        self.seed = seed
        self.device = next(model.parameters()).device
        self._largest_batch = 0
        self._position_bytes: float | None = None

    def batches(self, examples: Sequence[Example]) -> list[list[int]]:
        """Positions in ``examples`` grouped by size, so that little of a batch is padding; longest first."""
        sizes = example_sizes(self.task, examples)
        order = sorted(range(len(examples)), key=lambda position: -sizes[position])
        groups: list[list[int]] = []
        most = self._batch_tokens(examples[order[0]], sizes[order[0]]) if order else 0
        for position in order:
            if groups and sizes[groups[-1][0]] * (len(groups[-1]) + 1) <= most:
                groups[-1].append(position)
            else:
                groups.append([position])
        self._largest_batch = max(map(len, groups), default=0)
        return groups

    def grouped(self, examples: Sequence[Example], chosen: Sequence[int]) -> Batches:
        """The chosen positions batch by batch, each with its examples; memory is given back after every batch."""
        for group in self.batches([examples[position] for position in chosen]):
            positions = [chosen[place] for place in group]
            yield positions, [examples[position] for position in positions]
            trim_heap()  # else the heap holds several times what one batch needs, left by batches of other sizes

    def cost(self, examples: Sequence[Example]) -> PassCost:
        """What batches of the examples take, measured on the longest of a sample.

        Raises:
            ResourceError: the longest example alone does not fit in the memory.
        """
        every = max(1, len(examples) // _SIZED)
        sizes = example_sizes(self.task, examples[::every])
        place = max(range(len(sizes)), key=sizes.__getitem__)
        longest, size = examples[place * every], sizes[place]
        positions = min(max(self._batch_tokens(longest, size), size), every * sum(sizes))
        each = self._bytes_a_position(longest, size)
        with _alone(longest, size):
            shared = [inputs_in_common(row.gradients) for row in self.rows([longest])]
        mean = sum(sizes) / len(sizes)
        return PassCost(
            single=int(each * size),
            mean=int(each * mean),
            mean_size=mean,
            batch=int(each * positions),
            rows=len(shared),
            shared=all(shared),
        )

    def within_memory(self, work: Callable[[], T], report: Callable[[str], None]) -> T:
        """The result of ``work``, which goes through ``batches``; begun again with half as large batches where memory
        runs out.

        Args:
            work: What to do.
            report: Receives a sentence for the progress display whenever batches become smaller.

        Raises:
            RuntimeError, MemoryError: as the work raised it, where even single examples do not fit.
        """

        def begun() -> T:
            self._largest_batch = 0
            return work()

        def halve() -> None:
            self.batch_tokens = max(1, (self.batch_tokens or 1) // 2)
            report(f"memory ran out; going on with batches of {self.batch_tokens:,} positions")

        return within_memory(begun, lambda: self.batch_tokens not in (None, 1) and self._largest_batch > 1, halve)

    def trace(self, examples: Sequence[Example]) -> contextlib.AbstractContextManager[Trace]:
        """A traced forward pass of one batch."""
        batch = to_device(self.task.collate(examples), self.device)
        return tracing(self.model, self.task, self.tracked.layers, batch)

    def loss_gradients(self, examples: Sequence[Example]) -> dict[str, LayerGradient]:
        """Per-example gradients of the training losses of one batch, by layer name.

        Raises:
            ModelError: a gradient is not finite.
        """
        with self.trace(examples) as trace:
            gradients = trace.layer_gradients(self.task.loss(trace.outputs, trace.batch))
        self._check_finite(gradients, examples)
        return gradients

    def rows(self, examples: Sequence[Example]) -> Iterator[PulledRow]:
        """All pulled-back rows of one batch: every direction of the GGN, and the loss gradient where it is not a sum of
        these.

        Raises:
            ModelError: a gradient is not finite.
        """
        with self.trace(examples) as trace:
            exact = fits_exact_curvature(trace.outputs)
            for row in self._exact_rows(trace) if exact else self._drawn_rows(trace, examples):
                self._check_finite(row.gradients, examples)
                yield row

    def _batch_tokens(self, longest: Example, size: int) -> int:
        if self.batch_tokens is None:
            fits = int(_SHARE_OF_FREE * free_memory(self.device) / self._bytes_a_position(longest, size))
            self.batch_tokens = max(1, min(fits, FAST_TOKENS.get(self.device.type, FAST_TOKENS["cuda"])))
        return self.batch_tokens

    def _bytes_a_position(self, longest: Example, size: int) -> float:
        if self._position_bytes is None:
            with _alone(longest, size), SavedBytes(self.model.parameters()) as saved, self.trace([longest]):
                pass
            self._position_bytes = max(saved.total, 1) / size * _BYTES_A_SAVED_BYTE
        return self._position_bytes

    def _exact_rows(self, trace: Trace) -> Iterator[PulledRow]:
        curvature = exact_output_curvature(self.task, trace.outputs, trace.batch)
        coefficients = curvature.coefficients
        for number, direction in enumerate(curvature.directions):
            root = curvature.curvatures[number].sqrt()
            loss = torch.zeros_like(root) if coefficients is None else coefficients[number]
            yield PulledRow(trace.gradients_along(trace.outputs, direction, keep_graph=True), root, loss)
        if coefficients is None:
            yield self._loss_row(trace, curvature.loss_gradient)

    def _drawn_rows(self, trace: Trace, examples: Sequence[Example]) -> Iterator[PulledRow]:
        # Each example's own, so that what is drawn for it does not depend on the batch that it is in.
        generators = [
            torch.Generator().manual_seed(int(json_digest([self.seed, str(one.get("example_id"))])[:15], 16))
            for one in examples
        ]
        drawn = sampled_output_gradients(self.task, trace.outputs, trace.batch, draws=self.draws, generators=generators)
        for direction in drawn:
            gradients = trace.gradients_along(trace.outputs, direction, keep_graph=True)
            ones = direction.new_ones(trace.batch_size)
            yield PulledRow(gradients, ones, torch.zeros_like(ones))
        leaf = trace.outputs.detach().requires_grad_()
        (loss_gradient,) = torch.autograd.grad(self.task.loss(leaf, trace.batch).sum(), leaf)
        yield self._loss_row(trace, loss_gradient)

    def _loss_row(self, trace: Trace, loss_gradient: Tensor) -> PulledRow:
        ones = loss_gradient.new_ones(trace.batch_size)
        return PulledRow(trace.gradients_along(trace.outputs, loss_gradient), torch.zeros_like(ones), ones)

    def _check_finite(self, gradients: dict[str, LayerGradient], examples: Sequence[Example]) -> None:
        bounds = torch.stack([gradient.bounds() for gradient in gradients.values()])
        finite = torch.isfinite(bounds)
        if bool(finite.all()):  # one check for all layers, since each makes the processor wait for the GPU
            return
        number, position = (~finite).nonzero()[0].tolist()
        name = list(gradients)[number]
        example_id = examples[position].get("example_id", f"number {position} of the batch")
        raise ModelError(f"the gradient of example {example_id!r} is not finite in layer {name!r}", field=name)


@contextlib.contextmanager
def _alone(longest: Example, size: int) -> Iterator[None]:
    """While a single example passes through the model: running out of memory becomes a ResourceError that says so."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise ResourceError(
            f"memory ran out for example {longest.get('example_id')!r} alone, of size {size}; shorter texts "
            "(task.max_length) or fewer trained layers need less",
            field="index",
        ) from error
