"""Sizes of samples and shards, which both building an index and predicting its cost use."""

from __future__ import annotations

from pathlib import Path

SHARD = 1024
"""Examples a shard: the most that a killed build has to do again."""

LAYER_SAMPLE = 512
"""Examples that the layers' bases are fitted on, each at three times the cost of a pass; more change scores little."""

PRECONDITIONER_SAMPLE = 256
"""Examples whose squared gradients estimate Adam's second moments where these were not recorded."""

SIGNED_SAMPLE = 256
"""Training examples whose influence on held-out ones is used to measure how much of it the index keeps."""

SENSITIVITY_SHARD = 8 * SHARD
"""Examples that are unrolled together: their sensitivities and pending displacements are in memory."""


def most_dimensions(dimensions: int, examples: int) -> int:
    """Dimensions of an index, at most: a quarter more than examples, whose scores are of rank ``N``, and not fewer than
    1,024, which take little time; what more of them gain is in ``benchmarks/HISTORY.md``."""
    return min(dimensions, max(1024, examples * 5 // 4))


def sample_sizes(sample: int, examples: int, *, along_trajectory: bool) -> tuple[int, int]:
    """Numbers of examples that bases are fitted on: at the final weights, and at weights along the trajectory."""
    each = min(sample // 2 if along_trajectory else sample, examples)
    return each, each if along_trajectory else 0


def gradient_path(folder: Path, first: int) -> Path:
    """The file of the shard of loss gradients that begins with the example at position ``first``."""
    return folder / f"vectors-{first:09d}.safetensors"


def sensitivity_path(folder: Path, first: int) -> Path:
    """The file of the shard of ``d theta / d w`` that begins with the example at position ``first``."""
    return folder / f"responses-{first:09d}.safetensors"
