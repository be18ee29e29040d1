"""What building an index will take, said before it starts."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass

from influence_engine.index.passes import GradientPasses
from influence_engine.index.row_blocks import BLOCK_ROWS
from influence_engine.index.settings import IndexSettings
from influence_engine.index.sizes import LAYER_SAMPLE, RESPONSE_SHARD, sample_sizes
from influence_engine.resources import free_memory, readable_bytes
from influence_engine.tasks import Example
from influence_engine.training import Run

_PROBED = 2
_FEWEST_DIMENSIONS = 64
_DECOMPOSITION_FLOPS = 1e10
"""Floating-point operations a second that an eigendecomposition reaches on two cores; an estimate on the safe side."""


@dataclass(frozen=True)
class BuildPlan:
    """Predictions; time is ``None`` where nothing was probed.

    Attributes:
        examples: Training examples.
        dimensions: Values stored for each, at most.
        coordinates: Of all layers, at most.
        parameters: Trainable parameters.
        seconds: Estimated from probed batches.
        disk_bytes: Of the finished index and of the stages kept meanwhile.
        memory_bytes: Beyond what is in use already.
        least_memory_bytes: The same with single examples for batches, which is what a build falls back to.
    """

    examples: int
    dimensions: int
    coordinates: int
    parameters: int
    seconds: float | None
    disk_bytes: int
    memory_bytes: int
    least_memory_bytes: int

    def __str__(self) -> str:
        took = "" if self.seconds is None else f"about {self.seconds:.0f} s, "
        return (
            f"{self.examples} examples, {self.parameters} trainable parameters: {took}"
            f"{readable_bytes(self.disk_bytes)} of disk, {readable_bytes(self.memory_bytes)} of memory (estimated)"
        )


def plan_build(
    passes: GradientPasses,
    examples: Sequence[Example],
    settings: IndexSettings,
    record: Run | None,
    *,
    probe: bool = True,
) -> BuildPlan:
    """Predicts the build; with ``probe`` it runs a few batches to see how fast this machine is.

    Args:
        record: The run whose steps are followed, or none.
    """
    shapes = [layer.shape for layer in passes.tracked.layers]
    coordinates = min(settings.coordinates, sum(d0 * d1 for d0, d1 in shapes))
    sample = sum(sample_sizes(settings, len(examples), unrolled=record is not None))
    dimensions = min(settings.dimensions, sample)
    width = 2 if settings.dtype == "float16" else 4
    texts = sum(len(str(example)) for example in examples[:100]) / min(len(examples), 100)
    vectors = len(examples) * dimensions
    # A look-up table keeps chosen rows only; the other sides are square bases before they are cut.
    sides = sum(min(d0, 4096) ** 2 + min(d1, 4096) ** 2 for d0, d1 in shapes)
    disk = int(vectors * (width + 4) + coordinates * dimensions * (width + 4) + len(examples) * texts + sides)
    disk += sample * coordinates * 4
    # The basis in single precision and the finished one, products of the sampled rows; a batch of them, two blocks.
    memory = int(4 * sides + 3 * 8 * sample**2 + coordinates * (dimensions * 8 + 4 * BLOCK_ROWS * 4))
    uses = 0
    if record is not None:
        uses = len(record.schedule.rows)
        # Pulled-back rows and where they move the weights; responses and what is pending of them; a stretch's states.
        disk += uses * dimensions * 3 * 4 + vectors * 4 + 8 * passes.tracked.parameters
        stretch = max(last - first for first, last in itertools.pairwise(record.checkpoints))
        memory += min(len(examples), RESPONSE_SHARD) * dimensions * 3 * 4 + 12 * passes.tracked.parameters * stretch
    seconds = _seconds(passes, examples, sample, uses) if probe else None
    single, batch = passes.batch_bytes(examples)
    return BuildPlan(
        examples=len(examples),
        dimensions=dimensions,
        coordinates=coordinates,
        parameters=passes.tracked.parameters,
        seconds=seconds,
        disk_bytes=disk,
        memory_bytes=memory + batch,
        least_memory_bytes=memory + single,
    )


def what_fits(passes: GradientPasses, examples: Sequence[Example], settings: IndexSettings, record: Run | None) -> str:
    """Which smaller settings are predicted to fit in the memory that is free now, as advice."""
    free = free_memory(passes.device)
    smaller = settings
    # Where these settings should have fitted, smaller ones are no help: it is the model's own passes that need more.
    expected = plan_build(passes, examples, settings, record, probe=False).least_memory_bytes
    while expected > free and smaller.dimensions > _FEWEST_DIMENSIONS:
        smaller = smaller.model_copy(
            update={
                "dimensions": smaller.dimensions // 2,
                "coordinates": max(1, smaller.coordinates // 2),
                "sample": max(2, smaller.sample // 2),
            }
        )
        needed = plan_build(passes, examples, smaller, record, probe=False).least_memory_bytes
        if needed <= free:
            return (
                f"index.dimensions: {smaller.dimensions}, index.coordinates: {smaller.coordinates} and index.sample: "
                f"{smaller.sample} need {readable_bytes(needed)} of the {readable_bytes(free)} there are (estimated)"
            )
    return f"{readable_bytes(free)} are free; fewer trained layers, or shorter texts (task.max_length), need less"


def _seconds(passes: GradientPasses, examples: Sequence[Example], sample: int, uses: int) -> float:
    shapes = [layer.shape for layer in passes.tracked.layers]
    probed = examples[: 64 * _PROBED]
    batches = passes.batches(probed)
    passes.loss_gradients([probed[position] for position in batches[0]])  # warm up
    started = time.perf_counter()
    for batch in batches[:_PROBED]:
        for row in passes.rows([probed[position] for position in batch]):
            for gradient in row.gradients.values():
                gradient.squared_norms()
    each = (time.perf_counter() - started) / sum(len(batch) for batch in batches[:_PROBED])
    # Fitting the layers' bases costs about twice a plain pass; the decompositions do not depend on the model.
    # A use of a recorded step is trained again, pulled back, and multiplied with dense matrices.
    passed = 3 * min(LAYER_SAMPLE, len(examples)) + len(examples) + 4 * uses
    decompositions = 20 * sample**3 + sum(20 * min(d, 4096) ** 3 for shape in shapes for d in shape)
    return each * passed * 1.3 + decompositions / _DECOMPOSITION_FLOPS
