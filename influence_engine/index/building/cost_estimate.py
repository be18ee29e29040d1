"""What building an index will take, said before it starts."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from influence_engine.curvature.gradient_passes import GradientPasses, Needs
from influence_engine.index.building.approximation import Approximation
from influence_engine.index.building.row_blocks import BLOCK_ROWS
from influence_engine.index.settings import IndexSettings
from influence_engine.index.sizes import LAYER_SAMPLE, METRIC_SAMPLE, RESPONSE_SHARD, sample_sizes
from influence_engine.index.unrolling.lora_cross_terms import coupling_bytes, coupling_operations
from influence_engine.index.unrolling.residual_hessian import product_bytes
from influence_engine.resources import free_memory, readable_bytes
from influence_engine.tasks import Example, example_sizes

_PROBED_EXAMPLES, _PROBED_BATCHES = 128, 4
_FEWEST_DIMENSIONS = 64
_DECOMPOSED_BYTES = 36
"""For each number of a matrix while it is decomposed in double precision: itself twice, its vectors, and workspace."""

_HELD_BYTES = 20
"""For each number of a matrix of eigenvectors, in double and single precision, and of what is multiplied with it."""

_KEPT = {"inline": 1.0, "encrypted": 4 / 3, "none": 0.0}
"""Bytes in the table for each of an example's text; what is encrypted is kept in base64."""

_GRAPH = 2
"""Times of what a pass takes, for a gradient that is differentiated again."""

_DECOMPOSITION_FLOPS = 5e10
"""Floating-point operations a second that an eigendecomposition reaches; an estimate on the safe side."""


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
    approximation: Approximation,
    *,
    probe: bool = True,
) -> BuildPlan:
    """Predicts the build from passes of its longest example; with ``probe`` also from how fast a few batches are.

    Args:
        approximation: Of the index.
    """
    needs = passes.needs(examples)
    found = _bytes(passes, examples, settings, approximation, needs)
    sizes = sample_sizes(settings.sample, len(examples), followed=approximation.followed)
    rows = needs.rows * sum(sizes)
    return BuildPlan(
        examples=len(examples),
        dimensions=min(settings.dimensions, rows),
        coordinates=_coordinates(passes, settings),
        parameters=passes.tracked.parameters,
        seconds=_seconds(passes, examples, settings, needs, sum(sizes), rows, approximation) if probe else None,
        disk_bytes=found.disk,
        memory_bytes=found.memory(needs.batch, found.together),
        least_memory_bytes=found.least(needs.single),
    )


def what_fits(
    passes: GradientPasses, examples: Sequence[Example], settings: IndexSettings, approximation: Approximation
) -> str:
    """Which smaller settings are predicted to fit in the memory that is free now, as advice."""
    free, needs = free_memory(passes.device), passes.needs(examples)

    def least(tried: IndexSettings) -> int:
        return _bytes(passes, examples, tried, approximation, needs).least(needs.single)

    # Where these settings should have fitted, smaller ones are no help: it is the model's own passes that need more.
    tried = _smaller(settings, lambda one: least(one) <= free, {"hessian_directions": 0})
    if tried == settings or least(tried) > free:
        return f"{readable_bytes(free)} are free; fewer trained layers, or shorter texts (task.max_length), need less"
    needed = f"{readable_bytes(least(tried))} of the {readable_bytes(free)} there are"
    return f"{_changed(settings, tried)} {needed} (estimated)"


def what_fits_on_disk(
    passes: GradientPasses,
    examples: Sequence[Example],
    settings: IndexSettings,
    approximation: Approximation,
    room: int,
) -> str:
    """Which smaller settings are predicted to fit in ``room`` bytes of disk, as advice."""
    needs = passes.needs(examples)

    def disk(tried: IndexSettings) -> int:
        return _bytes(passes, examples, tried, approximation, needs).disk

    tried = _smaller(settings, lambda one: disk(one) <= room, {"hessian_directions": 0, "store_examples": "none"})
    if tried == settings:
        return "fewer index.dimensions, index.coordinates or index.sample need less"
    even, there = ("even ", "") if disk(tried) > room else ("", f" of the {readable_bytes(room)} there are")
    return f"{even}{_changed(settings, tried)} {readable_bytes(disk(tried))}{there} (estimated)"


def _smaller(
    settings: IndexSettings, fits: Callable[[IndexSettings], bool], first: Mapping[str, object]
) -> IndexSettings:
    """The same settings where they fit, else smaller ones: ``first`` changed one by one, then the sizes halved.

    Where none fit, the smallest that were tried.
    """
    tried = settings
    for name, value in first.items():
        if not fits(tried):
            tried = tried.model_copy(update={name: value})
    while not fits(tried) and tried.dimensions > _FEWEST_DIMENSIONS:
        tried = tried.model_copy(
            update={
                "dimensions": tried.dimensions // 2,
                "coordinates": max(1, tried.coordinates // 2),
                "sample": max(2, tried.sample // 2),
            }
        )
    for name in first:
        kept = tried.model_copy(update={name: getattr(settings, name)})
        if fits(kept):  # that change was not needed
            tried = kept
    return tried


def _changed(settings: IndexSettings, tried: IndexSettings) -> str:
    changed = [name for name, value in tried.model_dump().items() if value != getattr(settings, name)]
    smaller = ", ".join(f"index.{name}: {getattr(tried, name)}" for name in changed)
    return f"{smaller} {'need' if len(changed) > 1 else 'needs'}"


def _coordinates(passes: GradientPasses, settings: IndexSettings) -> int:
    return min(settings.coordinates, sum(d0 * d1 for d0, d1 in (layer.shape for layer in passes.tracked.layers)))


@dataclass(frozen=True)
class _Bytes:
    """What a build takes beside its passes over examples.

    Attributes:
        disk: Of the finished index and of the stages kept meanwhile.
        passing: Of memory while examples pass through the model.
        fixed: Of memory at the largest of the other stages.
        following: Of memory while examples of a recorded step pass through it.
        together: Of a micro-batch of such a step, as it was recorded.
        whole: Whether such a micro-batch passes as a whole or not at all.
        graph: Times of what a pass takes that those of a recorded step take.
    """

    disk: int
    passing: int
    fixed: int
    following: int = 0
    together: int = 0
    whole: bool = False
    graph: int = 1

    def memory(self, passes: int, followed: int) -> int:
        """Bytes with passes that take so many: stages come one after another, and freed memory is given back."""
        return max(self.fixed, self.passing + passes, self.following + self.graph * followed)

    def least(self, single: int) -> int:
        """Bytes with single examples for batches."""
        return self.memory(single, self.together if self.whole else min(single, self.together))


def _bytes(
    passes: GradientPasses,
    examples: Sequence[Example],
    settings: IndexSettings,
    approximation: Approximation,
    needs: Needs,
) -> _Bytes:
    """Predicted from sizes."""
    coordinates, record = _coordinates(passes, settings), approximation.steps
    rows = needs.rows * sum(sample_sizes(settings.sample, len(examples), followed=approximation.followed))
    dimensions = min(settings.dimensions, rows)
    width = 2 if settings.dtype == "float16" else 4
    texts = sum(len(str(example)) for example in examples[:100]) / min(len(examples), 100)
    vectors, basis = len(examples) * dimensions, coordinates * dimensions
    # A look-up table keeps chosen rows only; the other sides are square bases before they are cut.
    sides = 4 * sum(min(side, 4096) ** 2 for layer in passes.tracked.layers for side in layer.shape)
    block = coordinates * 4 * BLOCK_ROWS
    disk = int(
        vectors * (width + 4) + basis * (width + 4) + len(examples) * texts * _KEPT[settings.store_examples] + sides
    )
    disk += rows * coordinates * 4
    passing = max(basis * 4, 2 * block)
    # The rows' products, decomposed; the basis made of their vectors; that turned into the GGN's eigenvectors.
    fixed = max(
        _DECOMPOSED_BYTES * rows**2,
        basis * 4 + _HELD_BYTES * (rows**2 + dimensions**2) + 2 * block,
        basis * 4 + _DECOMPOSED_BYTES * dimensions**2,
        basis * (width + 4) + _HELD_BYTES * dimensions**2,
    )
    if record is not None:
        # Pulled-back rows and where they move the weights; responses and what is pending of them; a stretch's states.
        # Two rows for every direction of the step's Hessian.
        steps = len(record.schedule)
        pulled = (needs.rows * len(record.schedule.rows) + 2 * settings.hessian_directions * steps) * dimensions * 3 * 4
        disk += pulled + vectors * 4 + 8 * passes.tracked.parameters
        stretch = max(last - first for first, last in itertools.pairwise(record.checkpoints))
        coupled = coupling_bytes(passes.tracked, dimensions)
        disk += coupled * steps
        followed = basis * 4 + pulled * stretch // steps + coupled * stretch
        fixed = max(fixed, followed + min(len(examples), RESPONSE_SHARD) * dimensions * 3 * 4)
        states = 12 * passes.tracked.parameters * (stretch + 1)
        width = settings.hessian_directions
        return _Bytes(
            disk=disk,
            passing=int(sides + max(passing, followed + states)),
            fixed=int(sides + fixed),
            following=int(sides + followed + states + (product_bytes(passes.tracked, width) if width else 0)),
            together=needs.mean * record.schedule.largest,
            whole=record.dropout > 0,
            graph=_GRAPH if width else 1,
        )
    if count := approximation.segments:
        # Of every segment: matrix, the sample's gradients, and the weights in its middle; responses of all examples.
        sampled = min(settings.sample, len(examples))
        kept = 4 * count * dimensions * (dimensions + sampled)
        disk += kept + vectors * 4
        passing += kept + 4 * passes.tracked.parameters * (count + 1)
        fixed = max(fixed, basis * 4 + kept + (_DECOMPOSED_BYTES + 8 * count) * dimensions**2)
    return _Bytes(disk, int(sides + passing), int(sides + fixed))


def _seconds(
    passes: GradientPasses,
    examples: Sequence[Example],
    settings: IndexSettings,
    needs: Needs,
    sample: int,
    rows: int,
    approximation: Approximation,
) -> float:
    record, segments = approximation.steps, approximation.segments
    shapes = [layer.shape for layer in passes.tracked.layers]
    probed = examples[:: max(1, len(examples) // _PROBED_EXAMPLES)][:_PROBED_EXAMPLES]
    batches, sizes = passes.batches(probed), example_sizes(passes.task, probed)
    batches = batches[:: -(-len(batches) // _PROBED_BATCHES)]  # long and short ones
    passes.loss_gradients([probed[position] for position in batches[0]])  # warm up
    started = time.perf_counter()
    for batch in batches:
        for row in passes.rows([probed[position] for position in batch]):
            for gradient in row.gradients.values():
                gradient.squared_norms()  # about what projecting it costs
    each = (time.perf_counter() - started) / sum(len(batch) * sizes[batch[0]] for batch in batches) * needs.mean_size
    # Fitting the layers' bases costs three times a plain pass, a sampled example's rows one more. A use of a recorded
    # step is trained again, pulled back, and multiplied with dense matrices; a product with its Hessian is 1.5 more.
    uses = 0 if record is None else len(record.schedule.rows)
    layers = sum(sample_sizes(LAYER_SAMPLE, len(examples), followed=approximation.followed))
    passed = 3 * layers + sample + len(examples) + (3 + 1.5 * settings.hessian_directions) * uses
    # In every segment a pass of every example, and one more of each in the sample.
    passed += segments * (min(settings.sample, len(examples)) + len(examples))
    if record is None:  # the optimiser's metric may have to be estimated, with a pass of the base model beside
        passed += 2 * min(METRIC_SAMPLE, len(examples))
    operations = 20 * rows**3 + sum(20 * min(d, 4096) ** 3 for shape in shapes for d in shape)
    if record is not None:
        dimensions = min(settings.dimensions, rows)
        operations += len(record.schedule) * coupling_operations(
            passes.tracked, dimensions, _coordinates(passes, settings), seen=settings.hessian_directions > 0
        )
    operations += segments * 24 * min(settings.dimensions, rows) ** 3
    return each * passed * 1.3 + operations / _DECOMPOSITION_FLOPS
