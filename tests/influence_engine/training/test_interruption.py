"""A run that is killed goes on where it was and ends with the weights of one that was not."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from influence_engine.errors import RecordError
from influence_engine.models.loading import save_model
from influence_engine.tasks import TextClassification
from influence_engine.training import FinetuneSettings, Run, finetune
from influence_engine.training.checkpoints import checkpoint_path

SETTINGS = FinetuneSettings(epochs=4, batch_size=4, learning_rate=5e-3, dropout=0.1, seed=3)
STEPS = 20
CHECKPOINTED_EVERY = 5

PROGRAM = """
import json, sys
import torch
from influence_engine.models.loading import load_processor
from influence_engine.tasks import TextClassification
from influence_engine.training import FinetuneSettings, finetune

torch.set_num_threads(1)
base, train, settings, record_to, pause_at = sys.argv[1:]

def progress(stage, done, total, note=""):
    print(stage, done, flush=True)
    if stage == "fine-tuning" and done == int(pause_at):
        sys.stdin.read()

task = TextClassification(load_processor(base), ["negative", "positive"])
finetune(
    task, base, json.load(open(train)), settings=FinetuneSettings.model_validate_json(settings),
    record_to=record_to, progress=progress,
)
"""


class Trainings:
    """Fine-tunings in a process of their own."""

    def __init__(self, folder: Path, task: TextClassification, model: nn.Module, train: list[dict[str, Any]]) -> None:
        self.base, self.train, self.task, self.examples = folder / "base", folder / "train.json", task, train
        save_model(model, self.base, processor=task.tokenizer)
        self.train.write_text(json.dumps(train))

    def started(self, step: int, record_to: Path) -> tuple[subprocess.Popen[str], list[str]]:
        """A process that waits after ``step``, and what it had said until then."""
        arguments = [str(self.base), str(self.train), SETTINGS.model_dump_json(), str(record_to), str(step)]
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(line.strip())
            if line.strip() == f"fine-tuning {step}":
                break
        return process, said

    def killed_at(self, step: int, record_to: Path) -> list[str]:
        """Kills the process in the middle of the step after ``step`` and returns what it had said."""
        process, said = self.started(step, record_to)
        checkpoint = checkpoint_path(record_to, step - step % CHECKPOINTED_EVERY)
        while not checkpoint.is_file():  # a thread of its own writes it to the disk while training goes on
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait(timeout=30) == -signal.SIGKILL
        return said

    def finished(self, record_to: Path, settings: FinetuneSettings = SETTINGS) -> tuple[Run, list[int]]:
        steps: list[int] = []

        def note(stage: str, done: int, total: int, note: str = "") -> None:
            if stage == "fine-tuning":
                steps.append(done)

        run = finetune(self.task, self.base, self.examples, settings=settings, record_to=record_to, progress=note)
        return run, steps


@pytest.fixture
def trainings(
    task: TextClassification, make_model: Callable[..., nn.Module], make_examples: Callable[..., Any], tmp_path: Path
) -> Trainings:
    return Trainings(tmp_path, task, make_model(), make_examples(20))


def test_killed_twice_it_ends_with_the_weights_of_an_uninterrupted_run(trainings: Trainings, tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    first = trainings.killed_at(7, folder)
    (folder / "checkpoints" / ".step-000010.safetensors.abc.partial").write_bytes(b"half a checkpoint")
    second = trainings.killed_at(13, folder)
    with pytest.raises(RecordError, match=f"interrupted after step 10 of {STEPS}"):
        Run.open(folder)

    resumed, steps = trainings.finished(folder)
    whole, all_steps = trainings.finished(tmp_path / "whole")

    assert first[0] == "fine-tuning 0"
    assert second[0] == "fine-tuning 5"
    assert steps == list(range(10, STEPS + 1))
    assert all_steps == list(range(STEPS + 1))
    assert resumed.digests == whole.digests
    assert resumed.losses.tolist() == whole.losses.tolist()
    assert resumed.clip_factors.tolist() == whole.clip_factors.tolist()
    assert resumed.manifest["files"] == whole.manifest["files"]
    assert not list(folder.rglob("*.partial"))
    assert not (folder / "run.json").exists()
    Run.open(folder)


def test_an_interrupted_run_is_not_taken_over_by_another(trainings: Trainings, tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    trainings.killed_at(7, folder)
    before = sorted(path.name for path in folder.rglob("*"))

    with pytest.raises(RecordError, match=r"interrupted run that is not this one: settings\.seed: 3 in the run, 4 now"):
        trainings.finished(folder, SETTINGS.model_copy(update={"seed": 4}))
    trainings.examples = trainings.examples[:-1]
    with pytest.raises(RecordError, match="not this one: data: "):
        trainings.finished(folder)

    assert sorted(path.name for path in folder.rglob("*")) == before


def test_two_processes_do_not_record_into_one_folder(trainings: Trainings, tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    process, _ = trainings.started(7, folder)
    try:
        with pytest.raises(RecordError, match="another process is recording into"):
            trainings.finished(folder)
    finally:
        process.kill()
        process.wait(timeout=30)
    trainings.finished(folder)


def test_a_damaged_checkpoint_of_an_interrupted_run_is_named(trainings: Trainings, tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    trainings.killed_at(7, folder)
    (folder / "checkpoints" / "step-000005.safetensors").write_bytes(b"\xff" * 40)

    with pytest.raises(RecordError, match=r"step-000005\.safetensors is damaged"):
        trainings.finished(folder)
