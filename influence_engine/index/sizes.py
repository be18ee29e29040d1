"""How much an index is built from and at once, which both the building and its prediction go by."""

from __future__ import annotations

from pathlib import Path

SHARD = 1024
"""Examples a shard: what a killed build loses at most."""

LAYER_SAMPLE = 512
"""Examples that the layers' bases are fitted on, at three times the cost of a pass each; more change scores little."""

METRIC_SAMPLE = 256
"""Examples whose squared gradients stand in for Adam's second moments, where these were not recorded."""

SIGNED_SAMPLE = 256
"""Training examples whose influence on held-out ones says how much of it the index keeps."""

RESPONSE_SHARD = 8 * SHARD
"""Examples that run through the steps together: their responses and what is pending of them are in memory."""


def sample_sizes(sample: int, examples: int, *, followed: bool) -> tuple[int, int]:
    """Examples that bases are fitted on at the final weights, and at those that were passed on the way there."""
    each = min(sample // 2 if followed else sample, examples)
    return each, each if followed else 0


def shard_path(folder: Path, stage: str, first: int) -> Path:
    """The file of a stage's shard that begins with an example."""
    return folder / f"{stage}-{first:09d}.safetensors"
