"""Writes a recorded run, which is complete or recognisably incomplete, and never replaces another."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from influence_engine.digests import folder_digests
from influence_engine.errors import RecordError
from influence_engine.files import read_json, write_json
from influence_engine.models.loading import model_digest, save_model
from influence_engine.tensor_files import write_tensors
from influence_engine.training.checkpoints import Checkpoint, CheckpointWriter, read_checkpoint, saved_steps
from influence_engine.training.identity import differences, versions
from influence_engine.training.record import (
    EXAMPLES,
    FORMAT,
    FORMAT_VERSION,
    INCOMPLETE,
    MANIFEST,
    MODEL,
    STEPS,
    Run,
)
from influence_engine.training.schedule import Schedule


@dataclass(frozen=True)
class ExecutedSteps:
    """All steps of a finished training.

    Attributes:
        schedule: The steps.
        losses: The objective before each step.
        clip_factors: The factor by which clipping scaled each step's gradient.
    """

    schedule: Schedule
    losses: Sequence[float]
    clip_factors: Sequence[float]


class RecordWriter:
    """Writes one run into one folder.

    Args:
        folder: Made if missing; must be empty, or hold the same run, interrupted.
        identity: All that determines the run's result; a run with another identity is not touched.
        steps: Number of steps that the run will have.

    Raises:
        RecordError: the folder holds a complete run, another run, or something else.
    """

    def __init__(self, folder: str | os.PathLike[str], identity: Mapping[str, Any], steps: int) -> None:
        self.folder = Path(folder)
        self._identity = dict(identity)
        self._refuse_other()
        self.folder.mkdir(parents=True, exist_ok=True)
        for left in self.folder.rglob("*.partial"):
            left.unlink()
        write_json(self.folder / INCOMPLETE, {"format": FORMAT, "steps": steps, "identity": self._identity})
        self.checkpoints = CheckpointWriter(self.folder)

    def progressed(self) -> Checkpoint | None:
        """The newest checkpoint of an interrupted run; None where there is none.

        Raises:
            RecordError: its file is damaged; the message names it.
        """
        steps = saved_steps(self.folder)
        return read_checkpoint(self.folder, steps[-1]) if steps else None

    def finish(
        self,
        model: nn.Module,
        steps: ExecutedSteps,
        *,
        tokenizer: Any,
        example_ids: Sequence[str],
        optimizer: Mapping[str, Any],
        reasons: Sequence[str] = (),
        **facts: Any,
    ) -> Run:
        """Completes the record and opens it.

        Args:
            model: The model after the last step.
            steps: All steps.
            tokenizer: Saved beside the model; None where the task has none.
            example_ids: The rows that the schedule refers to.
            optimizer: What ``Optimizer.describe`` returns.
            reasons: Why the run cannot be replayed; none if it can be.
            facts: Further entries of the manifest that ``Run`` reads.
        """
        self.checkpoints.wait()
        self.checkpoints.close()
        save_model(model, self.folder / MODEL, tokenizer=tokenizer)
        write_json(self.folder / EXAMPLES, list(example_ids))
        tensors = steps.schedule.tensors() | {
            "losses": torch.tensor(steps.losses, dtype=torch.float64),
            "clip_factors": torch.tensor(steps.clip_factors, dtype=torch.float64),
        }
        write_tensors(self.folder / STEPS, tensors)
        manifest = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "digests": {"model": model_digest(model)} | {name: self._identity[name] for name in IN_DIGESTS},
            "replayable": not reasons,
            "why_not_replayable": "; ".join(reasons) or None,
            "optimizer": dict(optimizer),
            "checkpoints": saved_steps(self.folder),
            "steps": len(steps.schedule),
            "examples": len(example_ids),
            **facts,
            "identity": self._identity,
            "versions": versions(),
            "threads": torch.get_num_threads(),
            "files": folder_digests(self.folder, skip=(MANIFEST, INCOMPLETE), known=self.checkpoints.digests),
        }
        write_json(self.folder / MANIFEST, manifest)
        (self.folder / INCOMPLETE).unlink()
        return Run.open(self.folder, verify=False)

    def _refuse_other(self) -> None:
        folder = self.folder
        if folder.exists() and not folder.is_dir():
            raise RecordError(f"{folder} is a file; a run needs a folder", field="record_to")
        if (folder / MANIFEST).is_file():
            recorded = read_json(folder / MANIFEST).get("identity", {})
            lines = differences(recorded, self._identity)
            what = f"another run: {_listed(lines)}" if lines else "this very run, complete"
            raise RecordError(
                f"{folder} holds {what}. Open it with Run.open, record to another folder, or delete it.",
                field="record_to",
            )
        if (folder / INCOMPLETE).is_file():
            lines = differences(read_json(folder / INCOMPLETE)["identity"], self._identity)
            if lines:
                raise RecordError(
                    f"{folder} holds an interrupted run that is not this one: {_listed(lines)}. "
                    "Make them equal to go on with it, record to another folder, or delete it.",
                    field="record_to",
                )
        elif folder.is_dir() and any(folder.iterdir()):
            raise RecordError(
                f"{folder} is not empty and holds no run; record to a new or empty folder", field="record_to"
            )


IN_DIGESTS = ("base", "tokenizer", "data", "task")
"""Entries of an identity that are also in ``Run.digests``."""


@contextlib.contextmanager
def exclusively(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Locks ``folder`` against other recording processes; the system releases the lock if this process dies.

    Raises:
        RecordError: another process is recording there, or the folder cannot be made.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise RecordError(f"{folder} cannot be a run's folder: {error.strerror}", field="record_to") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise RecordError(f"another process is recording into {folder}; wait for it", field="record_to") from None
    finally:
        os.close(descriptor)


def matching_run(folder: str | os.PathLike[str], identity: Mapping[str, Any]) -> Run | None:
    """The complete run of this very identity in ``folder``, verified; None where there is no such run."""
    if not (Path(folder) / MANIFEST).is_file():
        return None
    run = Run.open(folder)
    return None if differences(run.manifest["identity"], identity) else run


def _listed(lines: list[str]) -> str:
    shown = "; ".join(lines[:5])
    return shown if len(lines) <= 5 else f"{shown}; and {len(lines) - 5} more"
