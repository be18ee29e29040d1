"""A run that is killed goes on where it was and ends with the weights of one that was not."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
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


def kill(process: subprocess.Popen[str], record_to: Path, step: int) -> None:
    """Kills it in the middle of the step after ``step``, when its last checkpoint is on the disk."""
    checkpoint = checkpoint_path(record_to, step - step % CHECKPOINTED_EVERY)
    while not checkpoint.is_file():  # a thread of its own writes it while training goes on
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait(timeout=30) == -signal.SIGKILL


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
        kill(process, record_to, step)
        return said

    def finished(
        self, record_to: Path, *, settings: FinetuneSettings = SETTINGS, examples: list[dict[str, Any]] | None = None
    ) -> tuple[Run, list[int]]:
        """The run, which this process records or goes on recording, and the steps that it heard of."""
        steps: list[int] = []

        def note(stage: str, done: int, total: int, note: str = "") -> None:
            if stage == "fine-tuning":
                steps.append(done)

        chosen = self.examples if examples is None else examples
        run = finetune(self.task, self.base, chosen, settings=settings, record_to=record_to, progress=note)
        return run, steps


@pytest.fixture
def trainings(interrupted: Interrupted) -> Trainings:
    return interrupted.trainings


@dataclass(frozen=True)
class Interrupted:
    """A training whose process was killed in the middle of the step after the seventh.

    Attributes:
        trainings: How it was started.
        folder: Its record; ``copy`` it.
        said: What it had said by then.
        refusal: What another process was told that wanted to record into the folder meanwhile.
    """

    trainings: Trainings
    folder: Path
    said: list[str]
    refusal: str

    def copy(self, folder: Path) -> Path:
        """The folder as it was left."""
        return Path(shutil.copytree(self.folder, folder))


@pytest.fixture(scope="module")
def interrupted(
    task: TextClassification,
    make_model: Callable[..., nn.Module],
    make_examples: Callable[..., Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Interrupted:
    root = tmp_path_factory.mktemp("interrupted")
    trainings, folder = Trainings(root, task, make_model(), make_examples(20)), root / "run"
    process, said = trainings.started(7, folder)
    with pytest.raises(RecordError) as refused:
        trainings.finished(folder)
    kill(process, folder, 7)
    return Interrupted(trainings, folder, said, str(refused.value))


def test_killed_twice_it_ends_with_the_weights_of_an_uninterrupted_run(
    interrupted: Interrupted, trainings: Trainings, tmp_path: Path
) -> None:
    folder = interrupted.copy(tmp_path / "killed")
    (folder / "checkpoints" / ".step-000010.safetensors.abc.partial").write_bytes(b"half a checkpoint")
    second = trainings.killed_at(13, folder)
    with pytest.raises(RecordError, match=f"interrupted after step 10 of {STEPS}"):
        Run.open(folder)

    resumed, steps = trainings.finished(folder)
    whole, all_steps = trainings.finished(tmp_path / "whole")

    assert interrupted.said[0] == "fine-tuning 0"
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


def test_an_interrupted_run_is_not_taken_over_by_another(
    interrupted: Interrupted, trainings: Trainings, tmp_path: Path
) -> None:
    folder = interrupted.copy(tmp_path / "killed")
    before = sorted(path.name for path in folder.rglob("*"))

    with pytest.raises(RecordError, match=r"interrupted run that is not this one: settings\.seed: 3 in the run, 4 now"):
        trainings.finished(folder, settings=SETTINGS.model_copy(update={"seed": 4}))
    with pytest.raises(RecordError, match="not this one: data: "):
        trainings.finished(folder, examples=trainings.examples[:-1])

    assert sorted(path.name for path in folder.rglob("*")) == before


def test_two_processes_do_not_record_into_one_folder(
    interrupted: Interrupted, trainings: Trainings, tmp_path: Path
) -> None:
    assert "another process is recording into" in interrupted.refusal
    trainings.finished(interrupted.copy(tmp_path / "free again"))


def test_a_damaged_checkpoint_of_an_interrupted_run_is_named(
    interrupted: Interrupted, trainings: Trainings, tmp_path: Path
) -> None:
    folder = interrupted.copy(tmp_path / "killed")
    (folder / "checkpoints" / "step-000005.safetensors").write_bytes(b"\xff" * 40)

    with pytest.raises(RecordError, match=r"step-000005\.safetensors is damaged"):
        trainings.finished(folder)
