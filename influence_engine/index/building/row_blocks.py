"""Rows for fitting a basis, on disk in blocks: any number of rows, in the memory of one or two blocks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import overload

import torch
from safetensors.torch import load_file
from torch import Tensor

from influence_engine.tensor_files import write_tensors

ROWS = "rows-"
"""Beginning of the blocks' file names."""

BLOCK_ROWS = 256
"""Rows of a block, to the next batch."""


class RowBlocks(Sequence[Tensor]):
    """Collects rows batch by batch and yields them in blocks ``[n, m]``, each read when its turn comes.

    Args:
        folder: Where the blocks are stored.
        name: Name of the blocks; files of that name are overwritten.
        device: The device that blocks are read to.
    """

    def __init__(self, folder: Path, name: str, device: torch.device) -> None:
        self._folder, self._name, self._device = folder, name, device
        self._blocks: list[Path] = []
        self._pending: list[Tensor] = []

    def add(self, rows: Tensor) -> None:
        """Adds the rows of one batch."""
        self._pending.append(rows)
        if sum(map(len, self._pending)) >= BLOCK_ROWS:
            self._write()

    def closed(self) -> RowBlocks:
        """The blocks, once all rows are added."""
        if self._pending:
            self._write()
        return self

    def remove(self) -> None:
        """Deletes the blocks."""
        for block in self._blocks:
            block.unlink(missing_ok=True)

    def __len__(self) -> int:
        return len(self._blocks)

    @overload
    def __getitem__(self, number: int) -> Tensor: ...

    @overload
    def __getitem__(self, number: slice) -> list[Tensor]: ...

    def __getitem__(self, number: int | slice) -> Tensor | list[Tensor]:
        if isinstance(number, slice):
            return [self[place] for place in range(*number.indices(len(self)))]
        return load_file(self._blocks[number])["rows"].to(self._device)

    def _write(self) -> None:
        path = self._folder / f"{ROWS}{self._name}-{len(self._blocks):06d}.safetensors"
        write_tensors(path, {"rows": torch.cat(self._pending)})
        self._blocks.append(path)
        self._pending = []
