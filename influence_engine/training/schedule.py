"""The steps of a run: the examples of each step, their weights, learning rate and seed."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from influence_engine.training.settings import FinetuneSettings

NO_SEED = -1
"""Value in ``Schedule.seeds`` of a step that draws no random numbers."""


@dataclass(frozen=True)
class Step:
    """One optimiser step: the gradient of ``sum_i w_i a_i l_i / Z_t`` over its micro-batches, then an update.

    Attributes:
        number: Counts from 1.
        rows: For each micro-batch the rows of its examples in the data set, ``[B]``.
        shares: For each micro-batch the ``a_i`` of its examples, ``[B]``: how much each counts in this step.
        normalizer: ``Z_t``, which never depends on ``w``.
        learning_rate: The step's learning rate.
        seed: Of the step's random numbers (dropout); None where it draws none.
    """

    number: int
    rows: list[Tensor]
    shares: list[Tensor]
    normalizer: float
    learning_rate: float
    seed: int | None


@dataclass(frozen=True)
class Schedule:
    """All steps of a run as flat tensors: ``T`` steps, ``K`` micro-batches, ``M`` uses of an example in a step.

    Attributes:
        rows: For each use the example's row in the data set, in the order of the steps, ``[M]``, int64.
        shares: The ``a_i`` of each use, ``[M]``, float32.
        batch_offsets: Where each micro-batch begins in ``rows``, and the end of the last, ``[K + 1]``, int64.
        step_offsets: The first micro-batch of each step, and the end of the last, ``[T + 1]``, int64.
        normalizers: ``Z_t``, ``[T]``, float64.
        learning_rates: Of each step, ``[T]``, float64.
        seeds: Of each step, ``[T]``, int64; ``NO_SEED`` where a step draws no random numbers.
    """

    rows: Tensor
    shares: Tensor
    batch_offsets: Tensor
    step_offsets: Tensor
    normalizers: Tensor
    learning_rates: Tensor
    seeds: Tensor

    def __len__(self) -> int:
        """Number of steps."""
        return len(self.normalizers)

    def step(self, number: int) -> Step:
        """Step ``number``, counted from 1."""
        first, end = self.step_offsets[number - 1 : number + 1].tolist()
        bounds = self.batch_offsets[first : end + 1].tolist()
        spans = list(itertools.pairwise(bounds))
        seed = int(self.seeds[number - 1])
        return Step(
            number=number,
            rows=[self.rows[start:stop] for start, stop in spans],
            shares=[self.shares[start:stop] for start, stop in spans],
            normalizer=float(self.normalizers[number - 1]),
            learning_rate=float(self.learning_rates[number - 1]),
            seed=None if seed == NO_SEED else seed,
        )

    def steps(self, after: int = 0) -> Iterator[Step]:
        """The steps that follow step ``after``, in order."""
        return (self.step(number) for number in range(after + 1, len(self) + 1))

    def split(self, most: int) -> Schedule:
        """The same steps in micro-batches of at most ``most`` examples; only for steps without dropout.

        A seeded step would draw other dropout masks.
        """
        return schedule_of(
            [
                replace(
                    step,
                    rows=[part for rows in step.rows for part in torch.split(rows, most)],
                    shares=[part for shares in step.shares for part in torch.split(shares, most)],
                )
                for step in self.steps()
            ]
        )

    @property
    def largest(self) -> int:
        """Number of examples of the largest micro-batch."""
        return int(self.batch_offsets.diff().max()) if len(self) else 0

    def tensors(self) -> dict[str, Tensor]:
        """All fields by name, for a file that ``schedule_from`` reads."""
        return {name: getattr(self, name) for name in FIELDS}


FIELDS = ("rows", "shares", "batch_offsets", "step_offsets", "normalizers", "learning_rates", "seeds")
"""Names of a schedule's tensors in files."""


def schedule_from(tensors: Mapping[str, Tensor]) -> Schedule:
    """The schedule that ``Schedule.tensors`` came from; other tensors are ignored."""
    return Schedule(**{name: tensors[name] for name in FIELDS})


def schedule_of(steps: Sequence[Step]) -> Schedule:
    """The schedule of the given steps."""
    batches = [rows for step in steps for rows in step.rows]
    shares = [share for step in steps for share in step.shares]
    return Schedule(
        rows=torch.cat(batches) if batches else torch.zeros(0, dtype=torch.long),
        shares=torch.cat(shares) if shares else torch.zeros(0),
        batch_offsets=_offsets([len(rows) for rows in batches]),
        step_offsets=_offsets([len(step.rows) for step in steps]),
        normalizers=torch.tensor([step.normalizer for step in steps], dtype=torch.float64),
        learning_rates=torch.tensor([step.learning_rate for step in steps], dtype=torch.float64),
        seeds=torch.tensor([NO_SEED if step.seed is None else step.seed for step in steps], dtype=torch.long),
    )


def plan_schedule(
    settings: FinetuneSettings, examples: int, sizes: Sequence[int] | None = None, *, pass_cost: int = 0
) -> Schedule:
    """The steps of a fine-tuning run on ``examples`` examples: each epoch in a seeded order of its own.

    Every example has ``a_i = 1``, and ``Z_t`` is the number of examples in the step.

    Args:
        settings: Epochs, batch size, learning rate and seed.
        examples: Number of training examples.
        sizes: Positions (tokens) of each example without padding, ``[N]``. With them, the examples of a step are
            grouped into micro-batches by size, which saves computing on padding and changes only the order of a sum.
        pass_cost: Cost of a further micro-batch, in positions.
    """
    per_step = settings.batch_size * settings.accumulation
    total = settings.epochs * math.ceil(examples / per_step)
    steps: list[Step] = []
    for epoch in range(settings.epochs):
        generator = torch.Generator().manual_seed(derived_seed(settings.seed, "order", epoch))
        order = torch.randperm(examples, generator=generator)
        for rows in torch.split(order, per_step):
            number = len(steps) + 1
            if sizes is None:
                batches = list(torch.split(rows, settings.batch_size))
            else:
                batches = group_by_size(rows, sizes, settings.batch_size, pass_cost)
            steps.append(
                Step(
                    number=number,
                    rows=batches,
                    shares=[torch.ones(len(batch)) for batch in batches],
                    normalizer=float(len(rows)),
                    learning_rate=learning_rate_at(settings, number, total),
                    seed=derived_seed(settings.seed, "step", number) if settings.dropout else None,
                )
            )
    return schedule_of(steps)


def group_by_size(rows: Tensor, sizes: Sequence[int], most: int, pass_cost: int) -> list[Tensor]:
    """Groups rows by size into micro-batches of the least cost, by dynamic programming.

    A micro-batch costs its padded positions and ``pass_cost`` more.

    Args:
        rows: Rows of the examples of a step, ``[B]``.
        sizes: Positions of each example of the data set, ``[N]``.
        most: Rows in a micro-batch, at most.
        pass_cost: In positions.
    """
    ordered = sorted(rows.tolist(), key=lambda row: -sizes[row])
    # cheapest[n]: least cost of the n largest rows, and where their last micro-batch begins.
    cheapest = [(0, 0)]
    for end in range(1, len(ordered) + 1):
        costs = (
            (cheapest[begin][0] + sizes[ordered[begin]] * (end - begin) + pass_cost, begin)
            for begin in range(max(0, end - most), end)
        )
        cheapest.append(min(costs))
    batches, end = [], len(ordered)
    while end:
        begin = cheapest[end][1]
        batches.append(torch.tensor(ordered[begin:end], dtype=torch.long))
        end = begin
    return batches[::-1]


def learning_rate_at(settings: FinetuneSettings, number: int, total: int) -> float:
    """Learning rate of step ``number`` (from 1) of ``total``: a linear warm-up, then the schedule of the settings."""
    warmup = round(settings.warmup_ratio * total)
    if number <= warmup:
        return settings.learning_rate * number / warmup
    passed = (number - 1 - warmup) / (total - warmup)
    if settings.schedule == "linear":
        return settings.learning_rate * (1.0 - passed)
    if settings.schedule == "cosine":
        return settings.learning_rate * 0.5 * (1.0 + math.cos(math.pi * passed))
    return settings.learning_rate


def checkpoint_steps(total: int, count: int | None) -> list[int]:
    """The steps after which weights and optimiser state are saved: evenly spaced, with step 0 and the last step.

    Args:
        total: Number of steps of the run.
        count: Number of checkpoints after step 0; None takes about the square root of ``total``.
    """
    parts = min(total, count or round(math.sqrt(total)))
    return [round(total * part / parts) for part in range(parts + 1)]


def derived_seed(seed: int, purpose: str, number: int) -> int:
    """A seed below ``2**63`` of its own for one purpose (such as ``order``) and number (such as the epoch's)."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{purpose}/{number}".encode()).digest()[:8], "big") >> 1


def _offsets(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths], dtype=torch.long).cumsum(0)
