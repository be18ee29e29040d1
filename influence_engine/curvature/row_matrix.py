"""Many rows as one matrix ``A [S, m]`` of which only products are asked, so that it need not be in memory as such."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor


class RowMatrix(Protocol):
    """``A [S, m]``."""

    @property
    def shape(self) -> tuple[int, int]:
        """``(S, m)``."""

    @property
    def like(self) -> Tensor:
        """A tensor of the rows' type, on their device."""

    def blocks(self, first: int = 0) -> Iterator[Tensor]:
        """The rows some at a time, ``[n, m]``, from block number ``first`` on; always the same blocks."""

    def products(self, matrix: Tensor) -> Tensor:
        """``A M [S, l]`` of ``M [m, l]``."""

    def combinations(self, coefficients: Tensor) -> Tensor:
        """``A^T C [m, l]`` of ``C [S, l]``."""


class BlockRows:
    """Rows in blocks, which are asked one after the other: from memory or from files.

    Args:
        blocks: Each ``[n, m]``.
    """

    def __init__(self, blocks: Sequence[Tensor]) -> None:
        self._blocks = blocks
        self._lengths = [len(block) for block in blocks]
        self._width, self._like = blocks[0].shape[1], blocks[0].new_empty(0)

    @property
    def shape(self) -> tuple[int, int]:
        return sum(self._lengths), self._width

    @property
    def like(self) -> Tensor:
        return self._like

    def blocks(self, first: int = 0) -> Iterator[Tensor]:
        return (self._blocks[number] for number in range(first, len(self._blocks)))

    def products(self, matrix: Tensor) -> Tensor:
        return torch.cat([block @ matrix for block in self._blocks])

    def combinations(self, coefficients: Tensor) -> Tensor:
        total = coefficients.new_zeros(self._width, coefficients.shape[1])
        for block, some in zip(self._blocks, torch.split(coefficients, self._lengths), strict=True):
            total.addmm_(block.T, some)
        return total


class StackedRows:
    """Matrices one below the other.

    Args:
        parts: Each with the same ``m``.
    """

    def __init__(self, parts: Sequence[RowMatrix]) -> None:
        self._parts = parts

    @property
    def shape(self) -> tuple[int, int]:
        return sum(part.shape[0] for part in self._parts), self._parts[0].shape[1]

    @property
    def like(self) -> Tensor:
        return self._parts[0].like

    def blocks(self, first: int = 0) -> Iterator[Tensor]:
        every = itertools.chain.from_iterable(part.blocks() for part in self._parts)
        return itertools.islice(every, first, None)

    def products(self, matrix: Tensor) -> Tensor:
        return torch.cat([part.products(matrix) for part in self._parts])

    def combinations(self, coefficients: Tensor) -> Tensor:
        counts = [part.shape[0] for part in self._parts]
        some = zip(self._parts, torch.split(coefficients, counts), strict=True)
        first, *others = (part.combinations(each) for part, each in some)
        for other in others:
            first += other
        return first
