"""Puts the chosen rows of an index into an explanation: each example with its influence and all that is known of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from influence_engine.attribution.quality import Errors
from influence_engine.attribution.result import Influential, ranks
from influence_engine.index import InfluenceIndex
from influence_engine.tasks import Task, probabilities_of


def described(
    index: InfluenceIndex,
    task: Task,
    returned: Sequence[tuple[list[int], list[float]]],
    tier: str,
    measurements: Tensor,
    errors: Sequence[Errors],
    *,
    by_sign: bool,
) -> list[list[Influential]]:
    """The examples of each query's explanation.

    Args:
        index: The index.
        task: Says what an influence does to a probability.
        returned: For each query rows of the index, and the examples' influences.
        tier: How the influences were obtained.
        measurements: ``[Q]``, of the queries.
        errors: For each query the intervals around its influences.
        by_sign: Whether ranks are counted within each sign.
    """
    wanted = sorted({row for rows, _ in returned for row in rows})
    known = dict(zip(wanted, index.describe(wanted), strict=True))
    return [
        [
            Influential(
                rank=rank,
                row=row,
                influence=influence,
                error_90=error.error_90(1, influence),
                probability_change=change,
                polarity="proponent" if influence >= 0 else "opponent",
                tier=tier,
                **known[row],
            )
            for rank, row, influence, change in zip(
                ranks(influences, by_sign=by_sign),
                rows,
                influences,
                _probability_changes(task, measurement, influences),
                strict=True,
            )
        ]
        for (rows, influences), measurement, error in zip(returned, measurements, errors, strict=True)
    ]


def _probability_changes(task: Task, measurement: Tensor, influences: Sequence[float]) -> Sequence[float | None]:
    without = measurement - torch.tensor(influences, dtype=measurement.dtype, device=measurement.device)
    before, after = probabilities_of(task, without), probabilities_of(task, measurement)
    if before is None or after is None:
        return [None] * len(influences)
    changes: list[float] = (after - before).tolist()
    return changes
