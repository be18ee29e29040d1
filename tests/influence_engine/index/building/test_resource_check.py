"""Promise: a build that runs out of memory goes on with smaller batches, or says what would fit and harms nothing.

Memory really runs out, of so many examples in one pass: what a model takes beyond its budget, no machine has.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from influence_engine import FinetuneSettings, IndexSettings, InfluenceIndex, Run, finetune
from influence_engine.errors import IndexFormatError, ResourceError
from tests.influence_engine.following import StoppedError
from tests.influence_engine.vectors import make_vectors

MEGABYTE = 2**20
ANY = 10**9


@dataclass
class Budget:
    """Examples that fit in a pass: forwards, backwards, and back through what was gone back through before.

    Attributes:
        after: Calls of the model before which everything fits.
        largest: By pass, the most examples that there was room for.
    """

    forwards: int = ANY
    backwards: int = ANY
    again: int = ANY
    after: int = 0
    largest: dict[str, int] = field(default_factory=dict)
    calls: int = 0

    def take(self, which: str, count: int) -> None:
        """Raises torch's own error where ``count`` examples do not fit."""
        if self.calls > self.after and count > getattr(self, which):
            torch.empty(2**60, dtype=torch.uint8)
        self.largest[which] = max(count, self.largest.get(which, 0))


class Wide(nn.Module):
    """Takes ``48 width`` bytes of each example's graph, and of a budget."""

    def __init__(self, width: int, budget: Budget) -> None:
        super().__init__()
        self.width, self.budget = width, budget

    def forward(self, x: Tensor) -> Tensor:
        self.budget.calls += 1
        self.budget.take("forwards", len(x))
        if x.requires_grad:
            x.register_hook(self._back)
        return (x.unsqueeze(-1) * torch.linspace(0.5, 1.5, self.width)).tanh().mean(-1)

    def _back(self, gradient: Tensor) -> None:
        self.budget.take("again" if torch.is_grad_enabled() else "backwards", len(gradient))


def network(budget: Budget, width: int = 10) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 12), Wide(width, budget), nn.Linear(12, 3))


@dataclass
class Notes:
    """The sentences about memory that a build's progress says."""

    said: list[str] = field(default_factory=list)

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        if "memory" in note:
            self.said.append(note)


def assert_same(one: InfluenceIndex, other: InfluenceIndex) -> None:
    """Two indexes' vectors, whatever the coordinates they are in."""
    products = []
    for index in (one, other):
        vectors = index.table.vectors().float()
        products.append(vectors @ vectors.T / index.manifest.scale**2)
    torch.testing.assert_close(products[0], products[1], rtol=1e-3, atol=1e-3 * float(products[0].abs().max()))


def stop(stage: str, done: int, total: int, note: str = "") -> None:
    """The progress function of a build that has got past its check."""
    raise StoppedError


def test_where_memory_runs_out_batches_are_halved_and_the_index_is_the_same(vector_task: Any, tmp_path: Path) -> None:
    train, budget, settings = make_vectors(200, seed=1, prefix="train-"), Budget(), IndexSettings(batch_tokens=2000)
    roomy = InfluenceIndex.build(network(budget), vector_task, train, tmp_path / "roomy", settings)
    assert (budget.largest["forwards"], budget.largest["backwards"]) == (200, 200)

    tight, notes = Budget(forwards=120, backwards=90), Notes()
    found = InfluenceIndex.build(network(tight), vector_task, train, tmp_path / "tight", settings, progress=notes)

    assert [note.rpartition(" with ")[2] for note in notes.said] == [
        "batches of 1,000 positions",
        "batches of 500 positions",
    ]
    assert notes.said[0].startswith("memory ran out; going on with ")
    assert tight.largest["backwards"] == 500 // 6
    assert_same(roomy, found)


@pytest.mark.parametrize(
    "budget",
    [{"forwards": 0}, {"backwards": 0}, {"backwards": 0, "after": 2}],
    ids=["forwards", "backwards", "planned"],
)
def test_where_single_examples_do_not_fit_it_says_so_and_the_last_index_stays(
    vector_task: Any, vector_train: Any, tmp_path: Path, budget: dict[str, int]
) -> None:
    good = InfluenceIndex.build(network(Budget()), vector_task, vector_train, tmp_path).manifest.build_digest

    with pytest.raises(ResourceError, match=r"memory ran out for example 'train-.*task\.max_length"):
        InfluenceIndex.build(network(Budget(**budget)), vector_task, vector_train, tmp_path, IndexSettings(seed=1))

    assert InfluenceIndex.open(tmp_path, device="cpu").manifest.build_digest == good


MemoryUpTo = Callable[[int], AbstractContextManager[None]]


def test_what_is_predicted_not_to_fit_is_refused_with_settings_that_do(
    vector_task: Any, tmp_path: Path, memory_up_to: MemoryUpTo
) -> None:
    train = make_vectors(2000, seed=1, prefix="train-")
    model = nn.Sequential(nn.Linear(6, 1000), nn.Tanh(), nn.Linear(1000, 3))
    # A space of 1,920 dimensions in 10,003 coordinates, with what it is multiplied to, takes a third of a gigabyte.
    refusal = r"building the index needs 3.*MB of memory \(estimated\); index.*sample: 1024 need"
    with memory_up_to(300 * MEGABYTE), pytest.raises(ResourceError, match=refusal):
        InfluenceIndex.build(model, vector_task, train, tmp_path, device="cpu")

    with pytest.raises(IndexFormatError):
        InfluenceIndex.open(tmp_path, device="cpu")
    with memory_up_to(300 * MEGABYTE), pytest.raises(StoppedError):
        InfluenceIndex.build(
            model, vector_task, train, tmp_path, IndexSettings(sample=1024), device="cpu", progress=stop
        )


def recorded(task: Any, folder: Path, width: int = 10, dropout: float = 0.0) -> tuple[Run, list[dict[str, Any]]]:
    """Four steps of ten examples each."""
    train = make_vectors(40, seed=1, prefix="train-")
    settings = FinetuneSettings(trainable="all", optimizer="sgd", epochs=1, batch_size=10, dropout=dropout)
    return finetune(task, network(Budget(), width), train, settings=settings, record_to=folder), train


@pytest.mark.parametrize(
    ("directions", "budget"),
    [(0, {"forwards": 7}), (0, {"backwards": 7}), (4, {"again": 7})],
    ids=["forwards", "backwards", "the gradient differentiated"],
)
def test_where_a_recorded_step_does_not_fit_its_micro_batches_are_halved_and_the_index_is_the_same(
    vector_task: Any, tmp_path: Path, directions: int, budget: dict[str, int]
) -> None:
    run, train = recorded(vector_task, tmp_path / "run")
    settings = IndexSettings(hessian_directions=directions, batch_tokens=6)
    found = []
    for name, kept, notes in (("roomy", Budget(), Notes()), ("tight", Budget(**budget), Notes())):
        index = InfluenceIndex.build_from_run(
            run, vector_task, train, tmp_path / name, settings, into=network(kept), progress=notes
        )
        found.append((index, kept, notes))
    (roomy, whole, silent), (tight, halved, told) = found

    assert silent.said == []
    assert told.said == ["memory ran out; going on with 5 examples of a step at once"]
    assert [(whole.largest[which], halved.largest[which]) for which in budget] == [(10, 5)]
    assert_same(roomy, tight)


def test_where_only_the_hessians_of_steps_with_dropout_do_not_fit_it_says_so(
    vector_task: Any, tmp_path: Path, memory_up_to: MemoryUpTo
) -> None:
    # With dropout, the ten examples of a step pass together or not at all: about 400 MB, and 800 with a Hessian.
    width = 200_000
    run, train = recorded(vector_task, tmp_path / "run", width, dropout=0.1)

    def build(settings: IndexSettings) -> None:
        InfluenceIndex.build_from_run(
            run,
            vector_task,
            train,
            tmp_path / "index",
            settings,
            into=network(Budget(), width),
            progress=stop,
            device="cpu",
        )

    advice = r"MB of memory \(estimated\); index.hessian_directions: 0 needs"
    with memory_up_to(700 * MEGABYTE), pytest.raises(ResourceError, match=advice):
        build(IndexSettings())
    with memory_up_to(700 * MEGABYTE), pytest.raises(StoppedError):
        build(IndexSettings(hessian_directions=0))
