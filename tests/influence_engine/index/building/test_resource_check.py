"""Promise: a build that runs out of memory goes on with smaller batches, or says what would fit and harms nothing.

Memory really runs out: each build is a process of its own whose address space is limited.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from influence_engine import IndexSettings, InfluenceIndex
from influence_engine.errors import IndexFormatError

PROGRAM = """
import importlib.util, json, resource, sys
from pathlib import Path
import psutil, torch
from torch import nn
from influence_engine import FinetuneSettings, IndexSettings, InfluenceIndex, finetune
from influence_engine.errors import ResourceError

folder, settings, conftest = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
count, width, beside, after, batch, room = map(int, sys.argv[4:10])
dropout = float(sys.argv[10])
spec = importlib.util.spec_from_file_location("engine_conftest", conftest)
small = importlib.util.module_from_spec(spec)
spec.loader.exec_module(small)
torch.set_num_threads(1)


class Wide(nn.Module):
    '''Much memory for each example, few weights; what going back takes, from some call on, is not foreseen.'''

    calls = 0

    def forward(self, x):
        self.calls += 1
        if x.requires_grad and self.calls > after:
            x.register_hook(lambda gradient: gradient + 0 * torch.ones(len(x), beside).mean())
        return (x.unsqueeze(-1) * torch.linspace(0.5, 1.5, width)).tanh().mean(-1)


torch.manual_seed(0)
model = nn.Sequential(nn.Linear(6, 12), Wide(), nn.Linear(12, 3))
train = small.make_vectors(count, seed=1, prefix="train-")
task = small.VectorClassification()
# The first product and the first file need room once, whatever the index.
InfluenceIndex.build(model, task, train[:3], folder / "before", IndexSettings(batch_tokens=1))
run = None
if batch:
    recorded = FinetuneSettings(trainable="all", optimizer="sgd", epochs=1, batch_size=batch, dropout=dropout)
    run = finetune(task, model, train, settings=recorded, record_to=folder / "run", reuse=True)
model[1].calls = 0
limit = psutil.Process().memory_info().vms + room
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
notes = []
where, settings = folder / "index", IndexSettings.model_validate_json(settings)
progress = lambda stage, done, total, note="": notes.append(note) if "memory" in note else None
try:
    if run is None:
        InfluenceIndex.build(model, task, train, where, settings, progress=progress)
    else:
        InfluenceIndex.build_from_run(run, task, train, where, settings, into=model, progress=progress)
except ResourceError as error:
    print(json.dumps({"error": str(error), "notes": notes}))
else:
    print(json.dumps({"notes": notes}))
"""
MEGABYTE = 2**20
CONFTEST = Path(__file__).parents[2] / "conftest.py"


def build(
    folder: Path,
    settings: IndexSettings,
    *,
    room: int,
    count: int = 200,
    width: int = 10,
    beside: int = 1,
    after: int = 0,
    batch: int = 0,
    dropout: float = 0.0,
) -> dict[str, Any]:
    """What a build within ``room`` bytes says, of a model whose graph takes ``48 width`` of them for every example.

    ``batch`` examples a recorded step, or no record.
    """
    numbers = map(str, (count, width, beside, after, batch, room, dropout))
    arguments = [str(folder), settings.model_dump_json(), str(CONFTEST), *numbers]
    done = subprocess.run([sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return said


def test_where_memory_runs_out_batches_are_halved_and_the_index_is_the_same(tmp_path: Path) -> None:
    # 200 examples of 1 MB, several times over, and room for a part of them.
    settings = IndexSettings(batch_tokens=2000)
    roomy = build(tmp_path / "roomy", settings, width=20_000, room=8_000 * MEGABYTE)
    tight = build(tmp_path / "tight", settings, width=20_000, room=300 * MEGABYTE)

    assert roomy == {"notes": []}
    assert "error" not in tight
    assert tight["notes"][0] == "memory ran out; going on with batches of 1,000 positions"
    assert_same(tmp_path / "roomy" / "index", tmp_path / "tight" / "index")


def assert_same(*folders: Path) -> None:
    """Two indexes' vectors, whatever the coordinates they are in."""
    indexes = [InfluenceIndex.open(folder, device="cpu") for folder in folders]
    vectors = [index.table.vectors().float() for index in indexes]
    products = [one @ one.T / index.manifest.scale**2 for one, index in zip(vectors, indexes, strict=True)]
    torch.testing.assert_close(products[0], products[1], rtol=1e-3, atol=1e-3 * float(products[0].abs().max()))


@pytest.mark.parametrize(
    "takes",
    [{"width": 2_000_000}, {"beside": 100 * MEGABYTE}, {"beside": 100 * MEGABYTE, "after": 2}],
    ids=["forwards", "backwards", "after it was planned"],
)
def test_where_single_examples_do_not_fit_it_says_so_and_the_last_index_stays(
    tmp_path: Path, takes: dict[str, int]
) -> None:
    build(tmp_path, IndexSettings(), room=8_000 * MEGABYTE)
    good = InfluenceIndex.open(tmp_path / "index", device="cpu").manifest.build_digest

    said = build(tmp_path, IndexSettings(seed=1), **takes, room=150 * MEGABYTE)

    assert "memory ran out for example 'train-" in said["error"]
    assert "task.max_length" in said["error"]
    assert InfluenceIndex.open(tmp_path / "index", device="cpu").manifest.build_digest == good


def test_what_is_predicted_not_to_fit_is_refused_with_settings_that_do(tmp_path: Path) -> None:
    # The products of 4,000 rows, two of each example, take half a gigabyte.
    said = build(tmp_path, IndexSettings(), count=2_000, room=300 * MEGABYTE)

    assert "building the index needs 5" in said["error"]
    assert "MB of memory (estimated)" in said["error"]
    assert "index.sample: 1024 need" in said["error"]
    with pytest.raises(IndexFormatError):
        InfluenceIndex.open(tmp_path / "index", device="cpu")


RECORDED = {"count": 40, "width": 200_000, "batch": 10}
"""Four steps; the ten examples of one take 96 MB, and several times that together."""


@pytest.mark.parametrize(("directions", "room"), [(0, 290), (4, 550)])
def test_where_a_recorded_step_does_not_fit_its_micro_batches_are_halved_and_the_index_is_the_same(
    tmp_path: Path, directions: int, room: int
) -> None:
    settings = IndexSettings(hessian_directions=directions, batch_tokens=6)
    roomy = build(tmp_path / "roomy", settings, **RECORDED, room=8_000 * MEGABYTE)
    tight = build(tmp_path / "tight", settings, **RECORDED, room=room * MEGABYTE)

    assert roomy == {"notes": []}
    assert "error" not in tight
    assert tight["notes"][0] == "memory ran out; going on with 5 examples of a step at once"
    assert_same(tmp_path / "roomy" / "index", tmp_path / "tight" / "index")


def test_where_only_the_hessians_of_steps_with_dropout_do_not_fit_it_says_so(tmp_path: Path) -> None:
    # With dropout, the examples of a step pass together or not at all.
    takes = {**RECORDED, "room": 700 * MEGABYTE}
    said = build(tmp_path, IndexSettings(), **takes, dropout=0.1)

    assert "MB of memory (estimated); index.hessian_directions: 0 needs" in said["error"]
    assert "error" not in build(tmp_path, IndexSettings(hessian_directions=0), **takes, dropout=0.1)
