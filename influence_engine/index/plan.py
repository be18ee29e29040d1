"""What building an index will take, said before it starts."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass

from influence_engine.index.building import LAYER_SAMPLE, RESPONSE_SHARD, sample_sizes
from influence_engine.index.passes import GradientPasses
from influence_engine.index.settings import IndexSettings
from influence_engine.resources import readable_bytes
from influence_engine.tasks import Example
from influence_engine.training import Run

_PROBED = 2
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
    """

    examples: int
    dimensions: int
    coordinates: int
    parameters: int
    seconds: float | None
    disk_bytes: int
    memory_bytes: int

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
    memory = int(4 * sides + sample * coordinates * 4 * 2 + 3 * 8 * sample**2 + coordinates * dimensions * 12)
    uses = 0
    if record is not None:
        uses = len(record.schedule.rows)
        # Pulled-back rows and where they move the weights; responses and what is pending of them; a stretch's states.
        disk += uses * dimensions * 3 * 4 + vectors * 4 + 8 * passes.tracked.parameters
        stretch = max(last - first for first, last in itertools.pairwise(record.checkpoints))
        memory += min(len(examples), RESPONSE_SHARD) * dimensions * 3 * 4 + 12 * passes.tracked.parameters * stretch
    seconds = _seconds(passes, examples, sample, uses) if probe else None
    return BuildPlan(len(examples), dimensions, coordinates, passes.tracked.parameters, seconds, disk, memory)


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
