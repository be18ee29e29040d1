"""Influence by group: training examples that share a label, a source, a licence, or a value of any metadata column."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from influence_engine.errors import InputError
from influence_engine.index import InfluenceIndex

DEFAULT_COLUMNS = ("label", "source")
"""Columns that influence is grouped by where nothing else is asked for."""

MOST_GROUPS = 32
"""Most groups of one column; where there are more values, the rarest share the group ``__other__``."""

OTHER = "__other__"


@dataclass(frozen=True)
class Grouping:
    """Training examples by the values of one column.

    Attributes:
        column: Name of the column.
        names: ``G`` groups in alphabetical order; ``""`` holds the examples without a value.
        sizes: Number of examples in each group.
        rows: ``[N]``, each example's group.
    """

    column: str
    names: list[str]
    sizes: list[int]
    rows: Tensor

    @classmethod
    def of(cls, column: str, values: Sequence[Any], device: torch.device) -> Grouping:
        """Groups by value; ``values`` are in index order."""
        shown = ["" if value is None else str(value) for value in values]
        counts = Counter(shown)
        if len(counts) > MOST_GROUPS:
            common = {name for name, _ in sorted(counts.items(), key=_largest_first)[: MOST_GROUPS - 1]}
            shown = [name if name in common else OTHER for name in shown]
            counts = Counter(shown)
        names = sorted(counts)
        numbers = {name: number for number, name in enumerate(names)}
        rows = torch.tensor([numbers[name] for name in shown], dtype=torch.long, device=device)
        return cls(column, names, [counts[name] for name in names], rows)

    def influences(self, scores: Tensor, error_90: Callable[[int, float], float | None]) -> list[dict[str, Any]]:
        """Influence of each group on one query.

        Args:
            scores: ``[N]``, influence of every example.
            error_90: Of a number of examples and their summed influence, half of the 90% interval around that sum.

        Returns:
            For each group ``by``, ``group``, ``examples``; its ``share`` of the sum of all absolute influences, split
            into ``supporting`` and ``opposing``; the signed sum ``influence`` and its ``error_90``.
        """
        # A GPU adds a million numbers to a handful of places one after the other, and counts with a histogram.
        positive, negative = (
            torch.bincount(self.rows, part, minlength=len(self.names)).tolist()
            for part in (scores.clamp_min(0), -scores.clamp_max(0))
        )
        total = max(sum(positive) + sum(negative), 1e-30)
        return [
            {
                "by": self.column,
                "group": name,
                "examples": size,
                "share": (supporting + opposing) / total,
                "supporting": supporting / total,
                "opposing": opposing / total,
                "influence": supporting - opposing,
                "error_90": error_90(size, supporting - opposing),
            }
            for name, size, supporting, opposing in zip(self.names, self.sizes, positive, negative, strict=True)
        ]


class Groups:
    """Groupings of an index, each read when it is first asked for.

    Args:
        index: The index whose examples are grouped.
        device: Where scores will be.
    """

    def __init__(self, index: InfluenceIndex, device: torch.device) -> None:
        self._index = index
        self._device = device
        self._known: dict[str, Grouping] = {}

    def by(self, column: str) -> Grouping:
        """The grouping by ``label``, ``source``, ``licence``, ``consent``, or a column of the examples' metadata.

        Raises:
            InputError: there is no such column; the message says which there are.
        """
        if column not in self._known:
            values = self._index.values_of(column)
            if values is None:
                known = ", ".join(self._index.columns())
                raise InputError(
                    f"training examples cannot be grouped by {column!r}; they have {known}", field="group_by"
                )
            self._known[column] = Grouping.of(column, values, self._device)
        return self._known[column]


def _largest_first(counted: tuple[str, int]) -> tuple[int, str]:
    return -counted[1], counted[0]
