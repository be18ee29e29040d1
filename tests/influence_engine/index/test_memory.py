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
from influence_engine import IndexSettings, InfluenceIndex
from influence_engine.errors import ResourceError

folder, (width, beside, room), (settings, conftest) = Path(sys.argv[1]), map(int, sys.argv[2:5]), sys.argv[5:]
spec = importlib.util.spec_from_file_location("engine_conftest", conftest)
small = importlib.util.module_from_spec(spec)
spec.loader.exec_module(small)
torch.set_num_threads(1)


class Wide(nn.Module):
    '''Much memory for each example, few weights; what going back takes is not foreseen.'''

    def forward(self, x):
        if x.requires_grad:
            x.register_hook(lambda gradient: gradient + 0 * torch.ones(len(x), beside).mean())
        return (x.unsqueeze(-1) * torch.linspace(0.5, 1.5, width)).tanh().mean(-1)


torch.manual_seed(0)
model = nn.Sequential(nn.Linear(6, 12), Wide(), nn.Linear(12, 3))
train = small.make_vectors(200, seed=1, prefix="train-")
task = small.VectorClassification()
# The first product and the first file need room once, whatever the index.
InfluenceIndex.build(model, task, train[:3], folder / "before", IndexSettings(batch_tokens=1))
limit = psutil.Process().memory_info().vms + room
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
notes = []
try:
    InfluenceIndex.build(
        model, task, train, folder / "index", IndexSettings.model_validate_json(settings),
        progress=lambda stage, done, total, note="": notes.append(note) if note else None,
    )
except ResourceError as error:
    print(json.dumps({"error": str(error), "notes": notes}))
else:
    print(json.dumps({"notes": notes}))
"""
MEGABYTE = 2**20
CONFTEST = Path(__file__).parents[1] / "conftest.py"


def build(folder: Path, *, width: int = 10, beside: int = 1, room: int, settings: IndexSettings) -> dict[str, Any]:
    """What a build within ``room`` bytes says, of a model whose graph takes ``48 width`` of them for every example."""
    arguments = [str(folder), str(width), str(beside), str(room), settings.model_dump_json(), str(CONFTEST)]
    done = subprocess.run([sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return said


def test_where_memory_runs_out_batches_are_halved_and_the_index_is_the_same(tmp_path: Path) -> None:
    # 200 examples of 1 MB, several times over, and room for a part of them.
    settings = IndexSettings(batch_tokens=2000)
    roomy = build(tmp_path / "roomy", width=20_000, room=8_000 * MEGABYTE, settings=settings)
    tight = build(tmp_path / "tight", width=20_000, room=300 * MEGABYTE, settings=settings)

    assert roomy == {"notes": []}
    assert "error" not in tight
    assert tight["notes"][0] == "memory ran out: 1000 positions a batch"
    first, second = (InfluenceIndex.open(tmp_path / name / "index", device="cpu") for name in ("roomy", "tight"))
    vectors = [index.table.vectors().float() for index in (first, second)]
    products = [one @ one.T / index.manifest.scale**2 for one, index in zip(vectors, (first, second), strict=True)]
    torch.testing.assert_close(products[0], products[1], rtol=1e-3, atol=1e-3 * float(products[0].abs().max()))


@pytest.mark.parametrize(
    ("takes", "says"),
    [
        ({"width": 2_000_000}, "memory ran out for example 'train-"),
        ({"beside": 100 * MEGABYTE}, "memory ran out while building the index (layers), even for single examples"),
    ],
    ids=["forwards", "backwards"],
)
def test_where_single_examples_do_not_fit_it_says_so_and_the_last_index_stays(
    tmp_path: Path, takes: dict[str, int], says: str
) -> None:
    build(tmp_path, room=8_000 * MEGABYTE, settings=IndexSettings())
    good = InfluenceIndex.open(tmp_path / "index", device="cpu").manifest.build_digest

    said = build(tmp_path, **takes, room=150 * MEGABYTE, settings=IndexSettings(seed=1))

    assert says in said["error"]
    assert "task.max_length" in said["error"]
    assert InfluenceIndex.open(tmp_path / "index", device="cpu").manifest.build_digest == good


def test_what_is_predicted_not_to_fit_is_refused_with_settings_that_do(tmp_path: Path) -> None:
    said = build(tmp_path, width=400_000, room=60 * MEGABYTE, settings=IndexSettings())

    assert "building the index needs" in said["error"]
    assert "(estimated)" in said["error"]
    assert "task.max_length" in said["error"]
    with pytest.raises(IndexFormatError):
        InfluenceIndex.open(tmp_path / "index", device="cpu")
