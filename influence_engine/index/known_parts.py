"""The parts that this code knows: a build writes them, ``upgrade`` adds them to what older code built."""

from __future__ import annotations

from influence_engine.index.file_sums import FileSums
from influence_engine.index.parts import IndexPart

KNOWN_PARTS: tuple[IndexPart, ...] = (FileSums(),)
