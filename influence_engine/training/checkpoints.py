"""Checkpoints of a run, each a safetensors file: trained weights, optimiser state, losses and clip factors so far."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from influence_engine.digests import file_digest
from influence_engine.errors import RecordError
from influence_engine.files import atomic_write, drop_from_page_cache, remove_tree
from influence_engine.training.optimizers import OptimizerState, Parameters

FOLDER = "checkpoints"

_LOG = "log"
_PARAMETERS = "parameters"
_ROWS = ".rows"
_HEIGHT = ".height"
_SPARSE_FROM = 1 << 16


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run after one of its steps.

    Attributes:
        step: The number of the step.
        parameters: The trained parameters after it.
        state: The optimiser's state after it; empty at step 0.
        losses: The objective before each step so far, ``[step]``.
        clip_factors: The factor by which clipping scaled the gradient of each step so far, ``[step]``.
    """

    step: int
    parameters: Parameters
    state: OptimizerState
    losses: list[float]
    clip_factors: list[float]


class CheckpointWriter:
    """Writes the checkpoints of one run; syncing to the disk runs in the background while training goes on.

    Args:
        run: The run's folder.

    Attributes:
        digests: SHA-256 digests of the checkpoints written, by their path within the run's folder.
    """

    def __init__(self, run: Path) -> None:
        self.digests: dict[str, str] = {}
        self._run = run
        self._background = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._syncing: Future[None] | None = None
        (run / FOLDER).mkdir(parents=True, exist_ok=True)

    def save(
        self,
        step: int,
        parameters: Mapping[str, Tensor],
        state: Mapping[str, Mapping[str, Tensor]],
        losses: Sequence[float],
        clip_factors: Sequence[float],
    ) -> None:
        """Writes a checkpoint; once ``wait`` has returned it is on the disk, and until then its file is absent.

        Raises:
            OSError: this checkpoint or the one before it could not be written.
        """
        self.wait()
        tensors = _named(parameters, state)
        tensors[f"{_LOG}/losses"] = torch.tensor(losses, dtype=torch.float64)
        tensors[f"{_LOG}/clip_factors"] = torch.tensor(clip_factors, dtype=torch.float64)
        path = checkpoint_path(self._run, step)
        with contextlib.ExitStack() as stack:
            temporary = stack.enter_context(atomic_write(path))
            save_file(tensors, temporary, metadata={"step": str(step)})
            pending = stack.pop_all()
        self._syncing = self._background.submit(self._sync, pending, path)

    def wait(self) -> None:
        """Waits until the checkpoint that was saved last is on the disk.

        Raises:
            OSError: it could not be written.
        """
        syncing, self._syncing = self._syncing, None
        if syncing is not None:
            syncing.result()

    def close(self) -> None:
        """Waits for the last checkpoint, written or not, and stops the background thread."""
        self._background.shutdown()

    def delete_all(self) -> None:
        """Deletes all checkpoints of the run."""
        self.wait()
        remove_tree(self._run / FOLDER)
        (self._run / FOLDER).mkdir()

    def _sync(self, pending: contextlib.ExitStack, path: Path) -> None:
        pending.close()  # syncs and renames
        self.digests[path.relative_to(self._run).as_posix()] = file_digest(path)
        drop_from_page_cache(path)


def checkpoint_path(run: Path, step: int) -> Path:
    """The file of the checkpoint after ``step``."""
    return run / FOLDER / f"step-{step:06d}.safetensors"


def saved_steps(run: Path) -> list[int]:
    """The steps after which there is a checkpoint, in ascending order."""
    return sorted(int(path.stem[5:]) for path in (run / FOLDER).glob("step-*.safetensors"))


def read_checkpoint(run: Path, step: int) -> Checkpoint:
    """Reads the checkpoint after ``step``.

    Raises:
        RecordError: its file is missing or damaged.
    """
    stored = read_tensors(checkpoint_path(run, step))
    kinds: OptimizerState = {}
    for name, tensor in stored.items():
        if name.endswith((_ROWS, _HEIGHT)):
            continue
        kind, _, parameter = name.partition("/")
        kinds.setdefault(kind, {})[parameter] = _dense(name, tensor, stored)
    log = kinds.pop(_LOG, {})
    lists = {name: log[name].tolist() if name in log else [] for name in ("losses", "clip_factors")}
    return Checkpoint(step, kinds.pop(_PARAMETERS, {}), kinds, **lists)


def read_tensors(path: Path) -> Parameters:
    """Reads all tensors of a safetensors file.

    Raises:
        RecordError: the file is missing or damaged.
    """
    if not path.is_file():
        raise RecordError(f"{path} is missing", field=str(path))
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
    except SafetensorError as error:
        raise RecordError(f"{path} is damaged: {error}", field=str(path)) from error


def _named(parameters: Mapping[str, Tensor], state: Mapping[str, Mapping[str, Tensor]]) -> Parameters:
    """Tensors by ``kind/parameter``; of large moments only the rows that are not zero, with their row numbers.

    The moments of the embedding of a token that has not occurred are zero, and embeddings are often most of a model.
    """
    tensors = {f"{_PARAMETERS}/{name}": tensor for name, tensor in parameters.items()}
    for kind, values in state.items():
        for name, tensor in values.items():
            key = f"{kind}/{name}"
            rows = _used_rows(tensor)
            if rows is None:
                tensors[key] = tensor
            else:
                height = torch.tensor(tensor.shape[0])
                tensors |= {key: tensor[rows], f"{key}{_ROWS}": rows, f"{key}{_HEIGHT}": height}
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _used_rows(tensor: Tensor) -> Tensor | None:
    """Rows of a large matrix with a bit that is not zero, where these are at most half of all; ``None`` elsewhere."""
    if tensor.dim() != 2 or tensor.numel() < _SPARSE_FROM or tensor.dtype != torch.float32:
        return None
    used = tensor.contiguous().view(torch.int32).any(1)
    return used.nonzero().squeeze(1) if int(used.sum()) * 2 <= len(used) else None


def _dense(name: str, tensor: Tensor, stored: Mapping[str, Tensor]) -> Tensor:
    rows = stored.get(f"{name}{_ROWS}")
    if rows is None:
        return tensor
    dense = tensor.new_zeros(int(stored[f"{name}{_HEIGHT}"]), *tensor.shape[1:])
    dense[rows] = tensor
    return dense
