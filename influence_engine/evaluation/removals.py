"""Sets of training examples that a retraining leaves out."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from influence_engine.errors import SettingsError


@dataclass(frozen=True)
class Removal:
    """A set of training examples to train without, or at less weight.

    Attributes:
        example_ids: Ids of the examples, sorted, so that equal sets are equal.
        weight: Weight of each of them in the objective; 0 leaves it out.
    """

    example_ids: tuple[str, ...]
    weight: float = 0.0

    @classmethod
    def of(cls, example_ids: Sequence[str], *, weight: float = 0.0) -> Removal:
        """The removal of the examples with these ids."""
        return cls(tuple(sorted(set(example_ids))), weight)


def random_removals(example_ids: Sequence[str], fraction: float, count: int, *, seed: int) -> list[Removal]:
    """``count`` random removals of a ``fraction`` of the examples, the same for the same seed.

    Raises:
        SettingsError: the fraction removes nothing or everything.
    """
    size = round(fraction * len(example_ids))
    if not 0 < size < len(example_ids):
        raise SettingsError(
            f"a removal of {fraction:g} takes {size} of {len(example_ids)} examples; it must leave some and take some",
            field="fraction",
        )
    ordered = sorted(example_ids)
    # A generator for each removal: asking for more of them later leaves the first ones as they were.
    return [Removal.of(random.Random(f"{seed}/{fraction}/{number}").sample(ordered, size)) for number in range(count)]


def membership(removals: Sequence[Removal], example_ids: Sequence[str]) -> Tensor:
    """Membership of examples in removals, ``[S, N]``: 1 where a removal takes an example, in the order of the ids."""
    rows = {example_id: row for row, example_id in enumerate(example_ids)}
    result = torch.zeros(len(removals), len(example_ids), dtype=torch.float64)
    for number, removal in enumerate(removals):
        result[number, [rows[example_id] for example_id in removal.example_ids]] = 1.0
    return result
