"""Promises: runs and indexes that commit 3ba35ab wrote open, verify, answer and go on with the code of today.

``tests/fixtures/make_before_the_move.py`` made them, and is where their models, tasks and settings are.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from influence_engine import Attributor, InfluenceIndex, Run, TextClassification, finetune
from influence_engine.digests import verify_folder
from influence_engine.index import current_version
from influence_engine.index.building.pipeline import VERSIONS
from influence_engine.models.loading import model_digest
from influence_engine.replay import replay
from influence_engine.training import reexecute
from tests.fixtures import make_before_the_move as before

EXPECTED = json.loads((before.FOLDER / "expected.json").read_text())
DATA = json.loads((before.FOLDER / "data.json").read_text())

VECTORS = before.Vectors()


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A copy of everything that was made."""
    folder = tmp_path / "made"
    shutil.copytree(before.FOLDER, folder)
    return folder


@pytest.fixture
def another_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The installed code says that it is of another version; so does torch."""
    for name in ("bento-audit", "torch"):
        about = tmp_path / "site" / f"{name.replace('-', '_')}-99.1.dist-info"
        about.mkdir(parents=True)
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 99.1\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return "99.1"


def task_of(name: str, folder: Path) -> tuple[Any, list[Any], list[Any], nn.Module | None]:
    """Task, training examples and queries, and a module to fill where the model is a user's own."""
    if name in ("vectors", "unrecorded"):
        return VECTORS, DATA["vectors"], DATA["vector_queries"], before.network()
    tokenizer = Run.open(folder / name / "run").load_processor()
    return TextClassification(tokenizer, before.LABELS), DATA["texts"], DATA["text_queries"], None


def attributor_of(name: str, folder: Path) -> tuple[Attributor, list[Any]]:
    task, _, queries, into = task_of(name, folder)
    run = Run.open(folder / ("vectors" if name == "unrecorded" else name) / "run")
    model = run.load_model(into)
    index = InfluenceIndex.open(folder / name / "index", model_digest=model_digest(model))
    return Attributor(model, task, index), queries


def built_again(name: str, folder: Path, index: Path, progress: Any = None) -> InfluenceIndex:
    """``index build`` with the data and settings of then."""
    task, train, _, into = task_of(name, folder)
    told = {} if progress is None else {"progress": progress}
    settings = before.DEFAULTS if name == "texts" else before.EXACT
    if name == "unrecorded":
        model = Run.open(folder / "vectors" / "run").load_model(into)
        return InfluenceIndex.build(model, task, train, index, settings, base=before.network(), **told)
    held_out = DATA["vectors_held_out"] if name == "vectors" else []
    return InfluenceIndex.build_from_run(
        folder / name / "run", task, train, index, settings, into=into, held_out=held_out, **told
    )


def test_the_files_are_those_that_were_made() -> None:
    verify_folder(before.FOLDER, EXPECTED["files"])


@pytest.mark.parametrize("name", ["vectors", "unrecorded", "texts", "lora"])
def test_an_index_verifies_and_gives_the_influences_of_then(name: str, made: Path) -> None:
    attributor, queries = attributor_of(name, made)
    attributor.index.verify()

    for tier in ("estimated", "replayed") if name == "vectors" else ("estimated",):
        found, then = attributor.scores(queries, tier), torch.tensor(EXPECTED["said"][name][tier])
        # A query is encoded in bfloat16 where the index is in half precision, and processors differ in how.
        close = 1e-5 if attributor.index.manifest.settings["dtype"] == "float32" else 5e-3
        assert float((found - then).abs().max()) <= close * float(then.abs().max())
    assert (attributor.index.calibration is not None) == (attributor.index.basis is not None) == (name == "vectors")


@pytest.mark.parametrize("name", ["vectors", "unrecorded", "texts", "lora"])
def test_an_index_of_the_same_things_is_kept_whatever_version_of_the_code_built_it(
    name: str, made: Path, another_version: str
) -> None:
    index = made / name / "index"
    version = current_version(index)
    encoder = index / VERSIONS / version / "encoder.safetensors"
    written = encoder.stat().st_mtime_ns

    found = built_again(name, made, index)

    assert found.folder.name == version
    assert encoder.stat().st_mtime_ns == written
    assert found.manifest.versions["bento-audit"] == "0.1.0"
    assert [path.name for path in (index / VERSIONS).iterdir()] == [version]


@pytest.mark.parametrize("name", ["vectors", "texts", "lora"])
def test_a_run_of_the_same_things_is_reused_whatever_version_of_the_code_recorded_it(
    name: str, made: Path, another_version: str
) -> None:
    folder = made / name / "run"
    task, train, _, _ = task_of(name, made)
    base = before.network() if name == "vectors" else before.classifier()
    settings = {"vectors": before.VECTOR_SETTINGS, "texts": before.TEXT_SETTINGS, "lora": before.LORA_SETTINGS}[name]
    steps: list[int] = []

    def note(stage: str, done: int, total: int, note: str = "") -> None:
        steps.append(done)

    run = finetune(task, base, train, settings=settings, record_to=folder, reuse=True, progress=note)
    assert steps == []
    assert run.manifest["versions"]["bento-audit"] == "0.1.0"


@pytest.mark.parametrize("name", ["vectors", "texts", "lora"])
def test_a_run_comes_out_again_and_is_replayed(name: str, made: Path) -> None:
    task, train, _, into = task_of(name, made)
    run = Run.open(made / name / "run")
    assert model_digest(run.load_model(into)) == run.digests["model"]
    recorded, _ = run.checkpoint(run.checkpoints[-1])

    found = reexecute(run, task, train, into=into, device="cpu")
    for parameter, value in recorded.items():
        torch.testing.assert_close(found[parameter], value, rtol=1e-4, atol=1e-5)
    exact = replay(run, task, train, {n: torch.ones(1, *v.shape) for n, v in recorded.items()}, into=into, device="cpu")
    assert exact.shape == (1, len(train))
    assert bool(exact.isfinite().all())


def test_an_interrupted_run_goes_on_under_another_version_and_says_so(made: Path, another_version: str) -> None:
    steps: list[int] = []

    def note(stage: str, done: int, total: int, note: str = "") -> None:
        steps.append(done)

    run = finetune(
        VECTORS,
        before.network(),
        DATA["vectors"],
        settings=before.VECTOR_SETTINGS,
        record_to=made / "interrupted" / "run",
        progress=note,
        device="cpu",
    )
    whole = Run.open(made / "vectors" / "run")
    assert steps[0] == 12
    torch.testing.assert_close(run.losses, whole.losses, rtol=1e-4, atol=1e-6)
    for name, value in whole.checkpoint(16)[0].items():
        torch.testing.assert_close(run.checkpoint(16)[0][name], value, rtol=1e-4, atol=1e-5)
    assert run.manifest["versions"]["bento-audit"] == another_version
    assert [found["bento-audit"] for found in run.manifest["earlier_versions"]] == ["0.1.0"]


def test_an_interrupted_build_goes_on_to_the_same_vectors(made: Path, another_version: str) -> None:
    stages: set[str] = set()

    def note(stage: str, done: int, total: int, note: str = "") -> None:
        if done < total:
            stages.add(stage)

    index = built_again("vectors", made, made / "interrupted" / "index", note)

    assert not any("fitting" in stage for stage in stages)
    task, _, queries, into = task_of("vectors", made)
    model = Run.open(made / "vectors" / "run").load_model(into)
    found = Attributor(model, task, index).scores(queries, "estimated")
    whole = InfluenceIndex.open(made / "vectors" / "index")
    (made / "vectors" / "index" / VERSIONS / whole.folder.name / "calibration.json").unlink()
    whole.reload_basis()
    then = Attributor(model, task, whole).scores(queries, "estimated")
    assert float((found - then).abs().max()) <= 1e-4 * float(then.abs().max())
    assert index.manifest.build_digest == whole.manifest.build_digest
