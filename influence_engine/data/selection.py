"""Which examples of a source belong to a data set: parts and samples, chosen by id and so by nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from influence_engine.data.settings import Part

PARTS: tuple[tuple[Part, float], ...] = (("train", 0.8), ("validation", 0.1), ("test", 0.1))
"""Shares of the parts of a source; they add up to 1."""


def place(example_id: str, purpose: str) -> float:
    """Where in [0, 1) a hash puts an id; another purpose gives an independent place."""
    digest = hashlib.sha256(f"{purpose}|{example_id}".encode("utf-8", errors="surrogatepass")).digest()
    # 53 bits are what a float holds exactly; with all 64 the largest would round up to 1.
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53


def part_of(example_id: str) -> Part:
    """The part an example belongs to. It stays there whatever rows come or go beside it."""
    position = place(example_id, "part")
    bound = 0.0
    for part, share in PARTS[:-1]:
        bound += share
        if position < bound:
            return part
    return PARTS[-1][0]


def sample(example_ids: Sequence[str], limit: int, seed: int) -> set[str]:
    """``limit`` ids, or all where there are no more; the choice does not depend on their order.

    A smaller sample of the same seed lies within a larger one.
    """
    return set(sorted(example_ids, key=lambda example_id: (place(example_id, f"sample {seed}"), example_id))[:limit])
