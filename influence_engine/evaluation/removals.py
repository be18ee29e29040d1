"""Which training examples are left out of a retraining."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from influence_engine.errors import SettingsError


@dataclass(frozen=True)
class Removal:
    """A set of training examples to train without, or with less of them.

    Attributes:
        example_ids: Which; sorted, so that equal sets are equal.
        weight: What remains of each in the objective.
    """

    example_ids: tuple[str, ...]
    weight: float = 0.0

    @classmethod
    def of(cls, example_ids: Sequence[str], *, weight: float = 0.0) -> Removal:
        """The set of these ids."""
        return cls(tuple(sorted(set(example_ids))), weight)


def random_removals(example_ids: Sequence[str], fraction: float, count: int, *, seed: int) -> list[Removal]:
    """``count`` random sets of a ``fraction`` of the examples, the same for the same seed.

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
    """``[S, N]``: 1 where a removal takes an example, in the order of ``example_ids``."""
    rows = {example_id: row for row, example_id in enumerate(example_ids)}
    result = torch.zeros(len(removals), len(example_ids), dtype=torch.float64)
    for number, removal in enumerate(removals):
        result[number, [rows[example_id] for example_id in removal.example_ids]] = 1.0
    return result
