"""Promise: a build for which the disk is too small harms nothing, says what would fit, and goes on when there is room.

The disk really takes no more: no file may grow beyond a limit, which is how every writer meets it.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from influence_engine import IndexSettings, InfluenceIndex, Run
from influence_engine.errors import ResourceError
from influence_engine.index.building.approximation import Approximation
from influence_engine.index.building.cost_estimate import plan_build, what_fits_on_disk
from influence_engine.index.building.pipeline import passes_for
from influence_engine.index.building.stages import LAYERS
from influence_engine.resources import readable_bytes
from tests.influence_engine.vectors import make_network

KILOBYTE = 1000


class Stages(list[str]):
    """Progress that notes which stages there were."""

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        self.append(stage)


@pytest.mark.parametrize(
    ("limit", "from_the_start"),
    [(1 * KILOBYTE, True), (12 * KILOBYTE, False), (200 * KILOBYTE, False)],
    ids=["first stage", "later stage", "table"],
)
def test_on_a_full_disk_the_last_index_stays_and_the_build_goes_on_when_there_is_room(
    limit: int,
    from_the_start: bool,
    files_up_to: Callable[[int], AbstractContextManager[None]],
    vector_model: nn.Module,
    vector_task: Any,
    vector_train: Any,
    index_folder: Path,
) -> None:
    train = [
        {**example, "note": random.Random(example["example_id"]).randbytes(4000).hex()} for example in vector_train
    ]
    good = InfluenceIndex.build(vector_model, vector_task, train, index_folder)
    other = IndexSettings(seed=1)

    with files_up_to(limit), pytest.raises(ResourceError) as raised:
        InfluenceIndex.build(vector_model, vector_task, train, index_folder, other)

    assert "the disk took no more while building the index (File too large)" in raised.value.message
    assert re.search(r"in all it needs \d.* of disk \(estimated\),.* are free; make room", raised.value.message)
    assert "fewer index.dimensions, index.coordinates or index.sample need less" in raised.value.message
    kept = InfluenceIndex.open(index_folder)
    kept.verify()
    assert kept.manifest.build_digest == good.manifest.build_digest

    stages = Stages()
    built = InfluenceIndex.build(vector_model, vector_task, train, index_folder, other, progress=stages)

    built.verify()
    assert built.manifest.build_digest != good.manifest.build_digest
    assert (LAYERS in stages) == from_the_start


def test_what_fits_is_the_least_change_that_does(
    fresh_network: nn.Module, vector_run: Run, vector_task: Any, vector_train: Any
) -> None:
    settings = IndexSettings(dimensions=128, hessian_directions=1, sample=64)
    # More text than the one direction takes, and less than half of all.
    train = [{**example, "note": "long " * 2000} for example in vector_train]
    passes, unrolled = passes_for(fresh_network, vector_task, settings), Approximation("unrolled", vector_run)

    def needed(**changes: Any) -> int:
        return plan_build(passes, train, settings.model_copy(update=changes), unrolled, probe=False).disk_bytes

    def advice(free: int) -> str:
        return what_fits_on_disk(passes, train, settings, unrolled, free)

    neither = needed(store_examples="none", hessian_directions=0)
    assert advice(needed()) == "fewer index.dimensions, index.coordinates or index.sample need less"
    assert advice(needed() - 1).startswith("index.hessian_directions: 0 needs ")
    assert advice(needed(store_examples="none")).startswith("index.store_examples: none needs ")
    assert advice(neither).startswith("index.store_examples: none, index.hessian_directions: 0 need ")
    assert "index.dimensions: 64" in advice(neither - 1)
    assert f"of the {readable_bytes(neither - 1)} there are (estimated)" in advice(neither - 1)
    assert advice(1).startswith("even index.dimensions: 64")


def test_stages_and_index_take_no_more_disk_than_predicted(
    fresh_network: nn.Module, vector_run: Run, vector_task: Any, vector_train: Any, index_folder: Path
) -> None:
    settings = IndexSettings(dimensions=64)  # of three labels, which take two rows for each use of an example
    most = 0

    def seen(stage: str, done: int, total: int, note: str = "") -> None:
        nonlocal most
        most = max(most, sum(file.stat().st_size for file in index_folder.rglob("*.safetensors")))

    model = vector_run.load_model(make_network())
    plan = InfluenceIndex.plan(model, vector_task, vector_train, settings, run=vector_run)
    InfluenceIndex.build_from_run(
        vector_run, vector_task, vector_train, index_folder, settings, into=fresh_network, progress=seen
    )

    assert 0 < most <= plan.disk_bytes
