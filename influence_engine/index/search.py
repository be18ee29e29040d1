"""The rows with the strongest influences on a query."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from influence_engine.errors import SettingsError

Polarity = Literal["both", "each", "proponents", "opponents"]
"""``both``: the strongest of either sign; ``each``: as many proponents as opponents; else those of one sign."""


def top_rows(scores: Tensor, top_k: int, polarity: Polarity) -> Tensor:
    """Rows of the strongest influences of one query, strongest first.

    Args:
        scores: ``[N]``, signed influences.
        top_k: Most rows to return (of each sign, for ``each``).
        polarity: ``proponents`` returns positive ones only, ``opponents`` negative ones only, ``both`` the largest
            in absolute value, ``each`` the proponents and then the opponents.

    Returns:
        ``[at most top_k]`` row numbers, of ``each`` up to twice as many; fewer where fewer have the sign asked for.
    """
    if polarity not in get_args(Polarity):
        raise SettingsError(f"polarity is {polarity!r}; allowed are {', '.join(get_args(Polarity))}", field="polarity")
    if top_k < 1:
        raise SettingsError(f"top_k is {top_k}; it must be at least 1", field="top_k")
    if polarity == "each":
        return torch.cat([top_rows(scores, top_k, side) for side in ("proponents", "opponents")])
    strength = scores.abs() if polarity == "both" else scores if polarity == "proponents" else -scores
    values, rows = torch.topk(strength, min(top_k, len(scores)))
    return rows if polarity == "both" else rows[values > 0]
