"""Unfinished or finished work in one file on disk, so that it is resumed after an interruption and never done twice."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from influence_engine.tensor_files import write_tensors
from influence_engine.training.optimizers import OptimizerState, Parameters, TrainingState

LEAST_WAIT_S = 2.0
"""Seconds between two checkpoints that are quickly written."""

WRITING = 0.05
"""Share of the time that writing checkpoints may take, unless so much work would be lost."""


class WorkCheckpoint:
    """The state of resumable work, in one file that is written atomically.

    Args:
        path: The file.
        every_s: Seconds of work that an interruption may cost at most; less where writing takes next to nothing.
    """

    def __init__(self, path: Path, every_s: float) -> None:
        self.path = path
        self._every_s = every_s
        self._wait_s = min(every_s, LEAST_WAIT_S)
        self._written = time.monotonic()

    def due(self) -> bool:
        """Whether the file was written long enough ago to write it again."""
        return time.monotonic() - self._written >= self._wait_s

    def write_tensors(self, tensors: Mapping[str, Tensor], done: int) -> None:
        """Writes the state after ``done`` units of work."""
        began = time.monotonic()
        write_tensors(self.path, {**tensors, "done": torch.tensor(done)})
        self._written = time.monotonic()
        self._wait_s = min(self._every_s, max(LEAST_WAIT_S, (self._written - began) / WRITING))


class RetrainingCheckpoint(WorkCheckpoint):
    """Trained parameters and optimiser state after some step of a retraining; of a finished one the parameters only.

    Args:
        folder: The file's folder.
        key: Digest of everything that the retraining depends on; it names the file.
        every_s: Seconds of work that an interruption may cost.
    """

    def __init__(self, folder: str | os.PathLike[str], key: str, every_s: float = 20.0) -> None:
        super().__init__(Path(folder) / f"retraining-{key[:32]}.safetensors", every_s)

    def read(self, device: torch.device) -> tuple[int, TrainingState] | None:
        """The number of the last finished step and the state after it; None where there is no readable file."""
        if not self.path.is_file():
            return None
        try:
            found = load_file(self.path)
        except Exception:  # whatever is wrong with the file, its steps can be executed again
            return None
        done = int(found.pop("done"))
        parameters: Parameters = {}
        state: OptimizerState = {}
        for key, tensor in found.items():
            kind, _, name = key.partition("/")
            if kind == "parameters":
                parameters[name] = tensor.to(device)
            else:
                state.setdefault(kind, {})[name] = tensor.to(device)
        return done, TrainingState(parameters, state)

    def write(self, done: int, state: TrainingState) -> None:
        """Writes the state after step ``done``; without an optimiser state for a retraining that is finished."""
        tensors = {f"parameters/{name}": tensor for name, tensor in state.parameters.items()}
        for kind, named in state.optimizer_state.items():
            tensors |= {f"{kind}/{name}": tensor for name, tensor in named.items()}
        self.write_tensors(tensors, done)
