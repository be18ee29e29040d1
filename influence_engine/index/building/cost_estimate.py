"""Predicts the time, disk and memory that building an index takes, and which smaller settings would fit."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from influence_engine.curvature.eigenbasis import decomposed_size
from influence_engine.curvature.gradient_passes import GradientPasses, PassCost
from influence_engine.index.building.approximation import Approximation
from influence_engine.index.building.row_blocks import BLOCK_ROWS
from influence_engine.index.settings import IndexSettings
from influence_engine.index.sizes import (
    LAYER_SAMPLE,
    PRECONDITIONER_SAMPLE,
    SENSITIVITY_SHARD,
    most_dimensions,
    sample_sizes,
)
from influence_engine.index.unrolling.lora_cross_terms import cross_term_bytes, cross_term_operations
from influence_engine.index.unrolling.residual_hessian import product_bytes
from influence_engine.index.unrolling.row_projection import FEWEST_ROWS, few_enough
from influence_engine.resources import free_memory, readable_bytes
from influence_engine.tasks import Example, example_sizes

_PROBED_EXAMPLES, _PROBED_BATCHES = 128, 4
_FEWEST_DIMENSIONS = 64
"""Dimensions below which smaller settings are not advised."""

_DECOMPOSED_BYTES = 36
"""For each entry of a matrix while it is decomposed in double precision: the matrix twice, eigenvectors, workspace."""

_HELD_BYTES = 20
"""For each entry of a matrix of eigenvectors, in double and single precision, and of the matrix multiplied with it."""

_STORED = {"inline": 1.0, "encrypted": 4 / 3, "none": 0.0}
"""Bytes in the table for each byte of an example's text, by ``store_examples``; encrypted text is stored in base64."""

_GRAPH = 2
"""Memory of a gradient that is differentiated again, in units of a pass."""

_DECOMPOSITION_FLOPS = 5e10
"""Floating-point operations a second that an eigendecomposition reaches; an estimate on the safe side."""

_MULTIPLICATIONS = 12
"""Products of rows with a space while a basis is found by multiplying, as measured."""

_PROBED_SIZE = 1024
"""Size of the product whose time tells how fast the device multiplies."""


@dataclass(frozen=True)
class BuildPlan:
    """The predicted cost of a build.

    Attributes:
        examples: Number of training examples.
        dimensions: Values stored for each example, at most.
        coordinates: Coordinates of all layers together, at most.
        parameters: Number of trainable parameters.
        seconds: Estimated from probed batches; ``None`` where nothing was probed.
        disk_bytes: Of the finished index, and of the stages meanwhile.
        memory_bytes: Beyond the memory that is in use already.
        least_memory_bytes: The memory with single examples for batches, which a build falls back to.
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
    """Predicts the cost of a build, with passes of its longest example.

    Args:
        passes: Run the model over examples.
        examples: The training examples.
        settings: How to build.
        approximation: Of which approximation the index will be.
        probe: Whether to time a few batches, which the prediction of seconds needs.
    """
    cost = passes.cost(examples)
    found = _bytes(passes, examples, settings, approximation, cost)
    rows = cost.rows * _sampled(examples, settings, approximation)
    return BuildPlan(
        examples=len(examples),
        dimensions=_dimensions(settings, examples, rows, _coordinates(passes, settings)),
        coordinates=_coordinates(passes, settings),
        parameters=passes.tracked.parameters,
        seconds=_seconds(passes, examples, settings, approximation, cost) if probe else None,
        disk_bytes=found.disk,
        memory_bytes=found.memory(cost.batch, found.together),
        least_memory_bytes=found.least(cost.single),
    )


def what_fits(
    passes: GradientPasses, examples: Sequence[Example], settings: IndexSettings, approximation: Approximation
) -> str:
    """Advice for an error message: which smaller settings are predicted to fit in the memory that is free now."""
    free, cost = free_memory(passes.device), passes.cost(examples)

    def least(tried: IndexSettings) -> int:
        return _bytes(passes, examples, tried, approximation, cost).least(cost.single)

    # Where the present settings should have fitted, smaller ones do not help: the model's own passes need more.
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
    free: int,
) -> str:
    """Advice for an error message: which smaller settings are predicted to fit in ``free`` bytes of disk."""
    cost = passes.cost(examples)

    def disk(tried: IndexSettings) -> int:
        return _bytes(passes, examples, tried, approximation, cost).disk

    tried = _smaller(settings, lambda one: disk(one) <= free, {"hessian_directions": 0, "store_examples": "none"})
    if tried == settings:
        return "fewer index.dimensions, index.coordinates or index.sample need less"
    even, there = ("even ", "") if disk(tried) > free else ("", f" of the {readable_bytes(free)} there are")
    return f"{even}{_changed(settings, tried)} {readable_bytes(disk(tried))}{there} (estimated)"


def _smaller(
    settings: IndexSettings, fits: Callable[[IndexSettings], bool], first: Mapping[str, object]
) -> IndexSettings:
    """The least change of the settings that fits: ``first`` is set one by one, then the sizes are halved.

    Where nothing fits, the smallest settings that were tried.
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
        without = tried.model_copy(update={name: getattr(settings, name)})
        if fits(without):  # this change was not needed
            tried = without
    return tried


def _changed(settings: IndexSettings, tried: IndexSettings) -> str:
    """The changed settings as the subject of a sentence, with its verb."""
    changed = [name for name, value in tried.model_dump().items() if value != getattr(settings, name)]
    smaller = ", ".join(f"index.{name}: {getattr(tried, name)}" for name in changed)
    return f"{smaller} {'need' if len(changed) > 1 else 'needs'}"


def _coordinates(passes: GradientPasses, settings: IndexSettings) -> int:
    return min(settings.coordinates, sum(d0 * d1 for d0, d1 in (layer.shape for layer in passes.tracked.layers)))


def _dimensions(settings: IndexSettings, examples: Sequence[Example], rows: int, coordinates: int) -> int:
    return min(most_dimensions(settings.dimensions, len(examples)), rows, coordinates)


@dataclass(frozen=True)
class _Bytes:
    """Disk and memory of a build, beside the memory of the model's passes over examples.

    Attributes:
        disk: Bytes of the finished index, and of the stages meanwhile.
        passing: Bytes of memory while examples pass through the model at the final weights.
        fixed: Bytes of memory of the largest stage without passes.
        unrolling: Bytes of memory while examples of a recorded step pass through the model.
        together: Bytes of the pass of a recorded step's micro-batch.
        whole: Whether such a micro-batch cannot be split, because of dropout.
        graph: Memory of such a pass, in units of a plain pass: more where the gradient is differentiated again.
    """

    disk: int
    passing: int
    fixed: int
    unrolling: int = 0
    together: int = 0
    whole: bool = False
    graph: int = 1

    def memory(self, batch: int, micro_batch: int) -> int:
        """Bytes of memory in all, with passes that take so many: stages come one after another."""
        return max(self.fixed, self.passing + batch, self.unrolling + self.graph * micro_batch)

    def least(self, single: int) -> int:
        """Bytes of memory in all, with single examples for batches."""
        return self.memory(single, self.together if self.whole else min(single, self.together))


def _bytes(
    passes: GradientPasses,
    examples: Sequence[Example],
    settings: IndexSettings,
    approximation: Approximation,
    cost: PassCost,
) -> _Bytes:
    """Predicted from the sizes of the tensors."""
    coordinates, record = _coordinates(passes, settings), approximation.steps
    rows = cost.rows * _sampled(examples, settings, approximation)
    dimensions = _dimensions(settings, examples, rows, coordinates)
    width = 2 if settings.dtype == "float16" else 4
    texts = sum(len(str(example)) for example in examples[:100]) / min(len(examples), 100)
    vectors, basis = len(examples) * dimensions, coordinates * dimensions
    # An embedding has selected rows only; the other sides are square bases before they are cut.
    sides = 4 * sum(min(side, 4096) ** 2 for layer in passes.tracked.layers for side in layer.shape)
    block = coordinates * 4 * BLOCK_ROWS
    disk = int(
        vectors * (width + 4) + basis * (width + 4) + len(examples) * texts * _STORED[settings.store_examples] + sides
    )
    disk += rows * coordinates * 4
    passing = max(basis * 4, 2 * block)
    # The rows' inner products, decomposed, or a space with what it is multiplied to and factors of it; the basis from
    # their eigenvectors; its rotation into the GGN's eigenvectors.
    whole = decomposed_size(rows, coordinates, dimensions)
    fixed = max(
        _DECOMPOSED_BYTES * whole**2 if whole else 4 * dimensions * (4 * coordinates + 2 * rows) + 2 * block,
        basis * 4 + _HELD_BYTES * (whole**2 + dimensions**2) + 2 * block,
        basis * 4 + _DECOMPOSED_BYTES * dimensions**2,
        basis * (width + 4) + _HELD_BYTES * dimensions**2,
    )
    if record is not None:
        # Pulled-back rows and their displacements; sensitivities and pending displacements; the states of the steps
        # between two checkpoints. Two rows for every direction of the steps' residual Hessians.
        steps = len(record.schedule)
        pulled = (cost.rows * len(record.schedule.rows) + 2 * settings.hessian_directions * steps) * dimensions * 3 * 4
        disk += pulled + vectors * 4 + 8 * passes.tracked.parameters
        interval = max(last - first for first, last in itertools.pairwise(record.checkpoints))
        cross_terms = cross_term_bytes(passes.tracked, dimensions)
        disk += cross_terms * steps
        linearised = basis * 4 + pulled * interval // steps + cross_terms * interval
        if cost.shared and few_enough(passes.tracked.parameters, dimensions):
            linearised += 2 * 4 * passes.tracked.parameters * dimensions  # the lifted basis, and times a factor
        fixed = max(fixed, linearised + min(len(examples), SENSITIVITY_SHARD) * dimensions * 3 * 4)
        states = 12 * passes.tracked.parameters * (interval + 1)
        width = settings.hessian_directions
        return _Bytes(
            disk=disk,
            passing=int(sides + max(passing, linearised + states)),
            fixed=int(sides + fixed),
            unrolling=int(sides + linearised + states + (product_bytes(passes.tracked, width) if width else 0)),
            together=cost.mean * record.schedule.largest,
            whole=record.dropout > 0,
            graph=_GRAPH if width else 1,
        )
    if count := approximation.segments:
        # For every segment its GGN, the sample's gradients, and the weights; the sensitivities of all examples.
        sampled = min(settings.sample, len(examples))
        stored = 4 * count * dimensions * (dimensions + sampled)
        disk += stored + vectors * 4
        passing += stored + 4 * passes.tracked.parameters * (count + 1)
        fixed = max(fixed, basis * 4 + stored + (_DECOMPOSED_BYTES + 8 * count) * dimensions**2)
    return _Bytes(disk, int(sides + passing), int(sides + fixed))


def _sampled(examples: Sequence[Example], settings: IndexSettings, approximation: Approximation) -> int:
    """Examples that the basis is fitted on, at the final weights and along the trajectory together."""
    return sum(sample_sizes(settings.sample, len(examples), along_trajectory=approximation.along_trajectory))


def _seconds(
    passes: GradientPasses,
    examples: Sequence[Example],
    settings: IndexSettings,
    approximation: Approximation,
    cost: PassCost,
) -> float:
    """Predicted from the time of a few batches and the operations of the large decompositions."""
    record, segments = approximation.steps, approximation.segments
    sampled = _sampled(examples, settings, approximation)
    rows = cost.rows * sampled
    shapes = [layer.shape for layer in passes.tracked.layers]
    probed = examples[:: max(1, len(examples) // _PROBED_EXAMPLES)][:_PROBED_EXAMPLES]
    batches, sizes = passes.batches(probed), example_sizes(passes.task, probed)
    batches = batches[:: -(-len(batches) // _PROBED_BATCHES)]  # of long and of short examples
    passes.loss_gradients([probed[position] for position in batches[0]])  # warm up
    started = time.perf_counter()
    for batch in batches:
        for row in passes.rows([probed[position] for position in batch]):
            for gradient in row.gradients.values():
                gradient.squared_norms()  # about what projecting it costs
    each = (time.perf_counter() - started) / sum(len(batch) * sizes[batch[0]] for batch in batches) * cost.mean_size
    # Fitting the layers' bases costs three times a plain pass, the rows of the sample one more. Each use of an example
    # in a recorded step is trained again, pulled back and multiplied with dense matrices; each product with the step's
    # Hessian costs 1.5 more.
    uses = 0 if record is None else len(record.schedule.rows)
    layers = sum(sample_sizes(LAYER_SAMPLE, len(examples), along_trajectory=approximation.along_trajectory))
    passed = 3 * layers + sampled + len(examples) + (3 + 1.5 * settings.hessian_directions) * uses
    # In every segment a pass of every example, and one more of each in the sample.
    passed += segments * (min(settings.sample, len(examples)) + len(examples))
    if record is None:  # the preconditioner may have to be estimated, with as many passes of the base model
        passed += 2 * min(PRECONDITIONER_SAMPLE, len(examples))
    coordinates = _coordinates(passes, settings)
    dimensions = _dimensions(settings, examples, rows, coordinates)
    whole = decomposed_size(rows, coordinates, dimensions)
    operations = 20 * (whole**3 + dimensions**3) + sum(20 * min(d, 4096) ** 3 for shape in shapes for d in shape)
    # Each use of a row reads the basis; where an example's rows share their inputs, all of them together do.
    readings = 1 if cost.shared else cost.rows
    products = 2.0 * (0 if whole else _MULTIPLICATIONS) * readings * sampled * coordinates * dimensions
    if not whole:
        operations += 2 * _MULTIPLICATIONS * coordinates * dimensions**2
    if record is not None:
        operations += len(record.schedule) * cross_term_operations(
            passes.tracked, dimensions, coordinates, with_gradient=settings.hessian_directions > 0
        )
        products += uses * _unrolling_products(passes, len(examples), cost, coordinates, dimensions)
    operations += segments * 24 * dimensions**3
    multiplied = products * _seconds_a_product(passes) if products else 0.0
    return each * passed * 1.3 + operations / _DECOMPOSITION_FLOPS + multiplied


def _unrolling_products(
    passes: GradientPasses, examples: int, cost: PassCost, coordinates: int, dimensions: int
) -> float:
    """Multiplications and additions for each use of an example in a recorded step, once its rows are known."""
    parameters = passes.tracked.parameters
    together = cost.shared and cost.rows >= FEWEST_ROWS and few_enough(parameters, dimensions)
    read = parameters if together else cost.rows * coordinates
    # The rows and their displacements are projected; sensitivities of all examples multiplied by both.
    return 2.0 * dimensions * (2 * read + 2 * cost.rows * examples)


def _seconds_a_product(passes: GradientPasses) -> float:
    """Seconds for each multiplication or addition of a large product on the device."""
    some = torch.ones(_PROBED_SIZE, _PROBED_SIZE, device=passes.device)
    float((some @ some)[0, 0])  # warm up
    started = time.perf_counter()
    float((some @ some)[0, 0])  # reading a number waits for the device
    return (time.perf_counter() - started) / (2.0 * _PROBED_SIZE**3)
