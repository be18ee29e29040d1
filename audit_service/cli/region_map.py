"""Regions of a picture as a small map of shades: where an influence, or a change, comes from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

SHADES = "·░▒▓█"
"""From next to nothing to the strongest region."""


def region_map(parts: Sequence[Mapping[str, Any]], value: str, *, residual: float | None = None) -> str:
    """Rich markup of the regions, row by row, green for what supports and red for what speaks against.

    What has no place in the picture follows, and what the split did not place, where that is known.

    Args:
        parts: The regions, row by row, and what has no place, as an answer gives them.
        value: The key of a region's number, such as ``influence``.
        residual: What all of them leave of what they split.
    """
    regions = [part[value] for part in parts if part["start"] is not None]
    side = math.isqrt(len(regions))
    strongest = max((abs(one) for one in regions), default=0.0)
    lines = [
        " ".join(_cell(one, strongest) for one in regions[row : row + side]) for row in range(0, side * side, side)
    ]
    rest = sum(part[value] for part in parts if part["start"] is None)
    notes = [f"strongest {max(regions, key=abs):+.4f}" if regions else "", f"no place {rest:+.4f}"]
    if residual is not None:
        notes.append(f"not placed {residual:+.4f}")
    return "\n".join([*lines, f"[dim]{', '.join(note for note in notes if note)}[/]"])


def _cell(value: float, strongest: float) -> str:
    share = abs(value) / strongest if strongest > 0 else 0.0
    shade = SHADES[min(int(share * len(SHADES)), len(SHADES) - 1)]
    return f"[{'green' if value >= 0 else 'red'}]{shade}{shade}[/]"
