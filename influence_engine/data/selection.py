"""Selects the examples of a data set from a source: parts and samples, by a hash of an example's id alone."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from influence_engine.data.settings import Part

PARTS: tuple[tuple[Part, float], ...] = (("train", 0.8), ("validation", 0.1), ("test", 0.1))
"""Shares of the parts of a source; they add up to 1."""


def place(example_id: str, purpose: str) -> float:
    """A pseudo-random number in [0, 1) from a hash of an id; another purpose gives an independent number."""
    digest = hashlib.sha256(f"{purpose}|{example_id}".encode("utf-8", errors="surrogatepass")).digest()
    # 53 bits are what a float holds exactly; with all 64 the largest would round up to 1.
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53


def part_of(example_id: str) -> Part:
    """The part that an example belongs to, whatever other rows the source has."""
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
