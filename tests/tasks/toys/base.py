"""What the toys share: what a toy is, and points, rows and networks for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from influence_engine.tasks import Target, Task
from tests.small_models import seeded

IGNORED = -100
"""Of a position that a loss does not look at."""


@dataclass(frozen=True)
class Toy:
    """One kind of task.

    Attributes:
        name: Of the kind.
        task: The task.
        model: A model by its seed.
        train: Training examples.
        queries: Inputs without targets.
        targets: What can be explained, as an API would say it.
        bad_target: What cannot; ``None`` where the task has nothing to name.
        plain: Whether the model is a module of one's own, not one of ``transformers``.
        learning_rate: Of its training; so gentle that leaving one example out is a small change.
        trainable: Which of the model's weights are trained.
    """

    name: str
    task: Task
    model: Callable[[int], nn.Module]
    train: list[dict[str, Any]]
    queries: list[dict[str, Any]]
    targets: list[Target] = field(default_factory=list)
    bad_target: Target | None = None
    plain: bool = True
    learning_rate: float = 0.02
    trainable: str | int = "all"


def log_odds(outputs: Tensor, targets: Tensor) -> Tensor:
    """Of the target at each position; 0 where there is none."""
    named = targets.clamp_min(0).unsqueeze(-1)
    others = outputs.scatter(-1, named, float("-inf")).logsumexp(-1)
    return (outputs.gather(-1, named).squeeze(-1) - others) * (targets >= 0)


def points(count: int, seed: int) -> list[list[float]]:
    """``[count, 4]``, normally distributed."""
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(seed)).tolist()


def with_ids(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of a data set, each with an id."""
    return [{"example_id": f"example-{number:02d}", **row} for number, row in enumerate(rows)]


def network(outputs: int) -> Callable[[int], nn.Module]:
    """Two layers over such points, by a seed."""
    return lambda seed: seeded(lambda: nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, outputs)), seed)
