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

from influence_engine.digests import file_digest, folder_digests
from influence_engine.errors import RecordError
from influence_engine.files import read_json, remove_tree, write_json
from influence_engine.models.adapter_base import ADAPTER_BASE
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
    check_format_version,
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
        # Steps that other versions have taken are kept; the record says so.
        self._earlier = [found for found in _versions_of_unfinished(self.folder) if found != versions()]
        about = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "steps": steps,
            "identity": self._identity,
            "versions": versions(),
            "earlier_versions": self._earlier,
        }
        write_json(self.folder / INCOMPLETE, about)
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
        processor: Any,
        example_ids: Sequence[str],
        optimizer: Mapping[str, Any],
        reasons: Sequence[str] = (),
        **facts: Any,
    ) -> Run:
        """Completes the record and opens it.

        Args:
            model: The model after the last step.
            steps: All steps.
            processor: Saved beside the model; None where the task has none.
            example_ids: The rows that the schedule refers to.
            optimizer: What ``Optimizer.describe`` returns.
            reasons: Why the run cannot be replayed; none if it can be.
            facts: Further entries of the manifest that ``Run`` reads.
        """
        self.checkpoints.wait()
        self.checkpoints.close()
        # What a killed process left may share a file with another run, which nothing may write to.
        remove_tree(self.folder / MODEL)
        save_model(model, self.folder / MODEL, processor=processor)
        known = {**self.checkpoints.digests, **_base_kept_once(self.folder)}
        write_json(self.folder / EXAMPLES, list(example_ids))
        tensors = steps.schedule.tensors() | {
            "losses": torch.tensor(steps.losses, dtype=torch.float64),
            "clip_factors": torch.tensor(steps.clip_factors, dtype=torch.float64),
        }
        write_tensors(self.folder / STEPS, tensors)
        manifest = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "digests": {
                "model": model_digest(model),
                **{name: self._identity[name] for name in IN_DIGESTS if name in self._identity},
            },
            "replayable": not reasons,
            "why_not_replayable": "; ".join(reasons) or None,
            "optimizer": dict(optimizer),
            "checkpoints": saved_steps(self.folder),
            "steps": len(steps.schedule),
            "examples": len(example_ids),
            **facts,
            "identity": self._identity,
            "versions": versions(),
            **({"earlier_versions": self._earlier} if self._earlier else {}),
            "threads": torch.get_num_threads(),
            "files": folder_digests(self.folder, skip=(MANIFEST, INCOMPLETE), known=known),
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
            begun = read_json(folder / INCOMPLETE)
            check_format_version(begun, folder)
            lines = differences(begun["identity"], self._identity)
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


def _versions_of_unfinished(folder: Path) -> list[dict[str, str]]:
    """Versions of code that have written to an interrupted run; until 0.1.0 they were part of its identity."""
    if not (folder / INCOMPLETE).is_file():
        return []
    begun = read_json(folder / INCOMPLETE)
    last = begun.get("versions") or begun["identity"].get("versions")
    return [*begun.get("earlier_versions", []), *([last] if last else [])]


def _base_kept_once(run: Path) -> dict[str, str]:
    """Lets an adapter's base share its disk space with that of a run beside this one, and gives its files' digests.

    By hard links to files of the same SHA-256: every run's folder is whole, can be copied, moved and deleted alone, and
    where the file system has no such links the run keeps its own copy.
    """
    weights = sorted((run / MODEL / ADAPTER_BASE).glob("*.safetensors"))
    digests = {path.relative_to(run).as_posix(): file_digest(path) for path in weights}
    for name, digest in digests.items():
        for other in run.parent.glob(f"*/{name}"):
            if other.parents[2] == run or other.stat().st_size != (run / name).stat().st_size:
                continue
            # Its own digest, not the one in its manifest: it may have been damaged since.
            if file_digest(other) == digest and _linked(other, run / name):
                break
    return digests


def _linked(other: Path, path: Path) -> bool:
    aside = path.with_name(f".{path.name}.partial")
    aside.unlink(missing_ok=True)
    try:
        os.link(other, aside)
    except OSError:
        return False
    os.replace(aside, path)
    return True


IN_DIGESTS = ("base", "tokenizer", "data", "inputs", "task")
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
