"""A retraining on disk, unfinished or finished: what was done is not done again."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from influence_engine.tensor_files import write_tensors
from influence_engine.training.optimizers import OptimizerState, Parameters


class SavedWork:
    """What was done of some work, in one file that is whole or absent.

    Args:
        path: The file.
        every_s: Seconds of work that an interruption may cost.
    """

    def __init__(self, path: Path, every_s: float) -> None:
        self.path = path
        self._every_s = every_s
        self._written = time.monotonic()

    def due(self) -> bool:
        """Whether it is time to write again."""
        return time.monotonic() - self._written >= self._every_s

    def keep(self, tensors: Mapping[str, Tensor], done: int) -> None:
        """Writes ``tensors``, which are of ``done`` steps."""
        write_tensors(self.path, {**tensors, "done": torch.tensor(done)})
        self._written = time.monotonic()


class SavedTraining(SavedWork):
    """Parameters and optimiser state after some step, in one file that is whole or absent.

    Args:
        folder: Where it lies.
        key: Digest of everything that the steps depend on.
        every_s: Seconds of work that an interruption may cost.
    """

    def __init__(self, folder: str | os.PathLike[str], key: str, every_s: float = 20.0) -> None:
        super().__init__(Path(folder) / f"retraining-{key[:32]}.safetensors", every_s)

    def read(self, device: torch.device) -> tuple[int, Parameters, OptimizerState] | None:
        """The last step that is done, and what follows it starts from; None where nothing is saved.

        A file that cannot be read counts as none: its steps are executed again.
        """
        if not self.path.is_file():
            return None
        try:
            found = load_file(self.path)
        except Exception:  # whatever is wrong with it, the steps are still there
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
        return done, parameters, state

    def write(self, done: int, parameters: Mapping[str, Tensor], state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Keeps what was reached after step ``done``; without ``state``, for a training that is finished."""
        tensors = {f"parameters/{name}": tensor for name, tensor in parameters.items()}
        for kind, named in state.items():
            tensors |= {f"{kind}/{name}": tensor for name, tensor in named.items()}
        self.keep(tensors, done)
