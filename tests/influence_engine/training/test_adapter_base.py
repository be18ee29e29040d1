"""Promises: what adapters sit on is kept once, by digest, and every folder is whole wherever it is copied."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from influence_engine.errors import DigestMismatchError, ModelError
from influence_engine.models.adapter_base import adapter_base_digest
from influence_engine.models.loading import add_lora, load_model, model_digest, save_model
from influence_engine.tasks import TextClassification
from influence_engine.training import FinetuneSettings, LoraSettings, Run, finetune
from tests.fixtures import make_before_the_move as before

SETTINGS = FinetuneSettings(trainable="lora", lora=LoraSettings(r=2), epochs=1, batch_size=4, learning_rate=1e-2)
WEIGHTS = "model/base/model.safetensors"

Record = Callable[..., Run]


@pytest.fixture
def record(
    task: TextClassification, make_model: Callable[..., nn.Module], make_examples: Callable[..., Any], tmp_path: Path
) -> Record:
    """``record(name, seed=0, base=0)``: a run of adapters in ``runs/name``."""

    def make(name: str, *, seed: int = 0, base: int = 0) -> Run:
        model = make_model(base, hidden_size=64, intermediate_size=128)
        settings = SETTINGS.model_copy(update={"seed": seed})
        finetune(task, model, make_examples(12), settings=settings, record_to=tmp_path / "runs" / name)
        return Run.open(tmp_path / "runs" / name)

    return make


def size(folder: Path) -> int:
    """Bytes on the disk: a file with two names counts once."""
    files = {path.stat().st_ino: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    return sum(files.values())


def test_a_run_of_adapters_takes_its_base_adapters_and_checkpoints_and_little_more(record: Record) -> None:
    run = record("first")

    base = sum(p.nbytes for name, p in run.load_model().named_parameters() if name not in run.trainable)
    trained = sum(run.load_model().get_parameter(name).nbytes for name in run.trainable)
    saved = trained * (1 + len(run.checkpoints) + 2 * (len(run.checkpoints) - 1))
    assert base > 5 * saved
    assert size(run.folder) < base + saved + 50_000


def test_runs_beside_each_other_keep_one_base_and_each_is_whole_alone(record: Record, tmp_path: Path) -> None:
    first, second = record("first"), record("second", seed=1)
    other = record("other", base=1)

    files = [run.folder / WEIGHTS for run in (first, second, other)]
    assert files[0].stat().st_ino == files[1].stat().st_ino != files[2].stat().st_ino
    assert size(tmp_path / "runs") < size(first.folder) + size(second.folder) + size(other.folder) - 50_000

    shutil.copytree(second.folder, tmp_path / "elsewhere" / "copy")
    shutil.rmtree(first.folder)
    for folder in (second.folder, tmp_path / "elsewhere" / "copy"):
        again = Run.open(folder)
        assert model_digest(again.load_model()) == second.digests["model"]
        assert model_digest(again.load_base()) == second.digests["base"]


def test_a_damaged_base_is_not_shared(record: Record) -> None:
    first = record("first")
    content = bytearray((first.folder / WEIGHTS).read_bytes())
    content[-3] ^= 1
    (first.folder / WEIGHTS).write_bytes(content)

    second = record("second", seed=1)

    assert (second.folder / WEIGHTS).stat().st_nlink == 1
    Run.open(second.folder)


def test_what_finishes_a_killed_run_writes_to_no_other_runs_base(record: Record, tmp_path: Path) -> None:
    first = record("first")
    written = (first.folder / WEIGHTS).stat().st_mtime_ns
    # As if it had been killed between saving the model and writing the manifest.
    second = record("second", seed=1)
    about = {"format": "bento-audit/run", "steps": 3, "identity": second.manifest["identity"]}
    (second.folder / "run.json").write_text(json.dumps(about))
    (second.folder / "manifest.json").unlink()

    record("second", seed=1)

    assert (first.folder / WEIGHTS).stat().st_mtime_ns == written
    Run.open(first.folder)


@pytest.fixture
def adapted(make_model: Callable[..., nn.Module]) -> nn.Module:
    return add_lora(make_model(), r=2, alpha=4, seed=1)


def test_an_adapter_refers_to_the_base_of_the_one_beside_it(adapted: nn.Module, tmp_path: Path) -> None:
    fresh = model_digest(adapted)
    save_model(adapted, tmp_path / "a" / "first")
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    save_model(adapted, tmp_path / "a" / "second", base_of=tmp_path / "a" / "first")
    assert not (tmp_path / "a" / "second" / "base").exists()
    shutil.move(tmp_path / "a", tmp_path / "moved")

    assert model_digest(load_model(tmp_path / "moved" / "first")) == fresh
    assert model_digest(load_model(tmp_path / "moved" / "second")) == model_digest(adapted)
    assert adapter_base_digest(load_model(tmp_path / "moved" / "second")) == adapter_base_digest(adapted)


def test_a_reference_to_another_model_or_out_of_the_folder_is_refused(
    adapted: nn.Module, make_model: Callable[..., nn.Module], tmp_path: Path
) -> None:
    save_model(adapted, tmp_path / "a" / "first")
    save_model(adapted, tmp_path / "a" / "second", base_of=tmp_path / "a" / "first")
    reference = tmp_path / "a" / "second" / "base.json"
    digest = json.loads(reference.read_text())["digest"]
    make_model(5).save_pretrained(tmp_path / "outside")  # type: ignore[operator]

    for text in (json.dumps({"path": "../../outside", "digest": digest}), json.dumps({"digest": digest}), "{", "[]"):
        reference.write_text(text)
        with pytest.raises(ModelError, match=r"base\.json"):
            load_model(tmp_path / "a" / "second")

    reference.write_text(json.dumps({"path": "../first/base", "digest": digest}))
    shutil.rmtree(tmp_path / "a" / "first" / "base")
    shutil.copytree(tmp_path / "outside", tmp_path / "a" / "first" / "base")
    with pytest.raises(DigestMismatchError, match=r"first/base has weights with digest"):
        load_model(tmp_path / "a" / "second")


def test_a_run_and_a_served_folder_of_before_with_their_own_bases_load() -> None:
    run = Run.open(before.FOLDER / "lora" / "run")

    assert model_digest(run.load_model()) == run.digests["model"]
    for name, digest in (("fine_tuned", "model"), ("base", "base")):
        assert model_digest(load_model(before.FOLDER / "lora" / "served" / name)) == run.digests[digest]
