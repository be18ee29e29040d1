"""Checkpoints of a run: trained weights, optimiser state, and the log so far, each in one safetensors file."""

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
from influence_engine.files import let_go, remove_tree, writing_aside
from influence_engine.training.optimizers import OptimizerState, Parameters

FOLDER = "checkpoints"

_LOG = "log"
_PARAMETERS = "parameters"
_ROWS = ".rows"
_HEIGHT = ".height"
_SPARSE_FROM = 1 << 16


@dataclass(frozen=True)
class Checkpoint:
    """How far a run got.

    Attributes:
        step: The last step whose result was saved.
        parameters: After it.
        state: The optimiser's, after it.
        losses: Of the steps so far, ``[step]``.
        clip_factors: Of the steps so far, ``[step]``.
    """

    step: int
    parameters: Parameters
    state: OptimizerState
    losses: list[float]
    clip_factors: list[float]


class CheckpointWriter:
    """Writes the checkpoints of one run; what waits for the disk does so while training goes on.

    Args:
        run: The run's folder.

    Attributes:
        digests: SHA-256 of the checkpoints written, by their path in the run.
    """

    def __init__(self, run: Path) -> None:
        self.digests: dict[str, str] = {}
        self._run = run
        self._background = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._settling: Future[None] | None = None
        (run / FOLDER).mkdir(parents=True, exist_ok=True)

    def save(
        self,
        step: int,
        parameters: Mapping[str, Tensor],
        state: Mapping[str, Mapping[str, Tensor]],
        losses: Sequence[float],
        clip_factors: Sequence[float],
    ) -> None:
        """Writes one; once ``wait`` has returned it is on the disk, and until then it is absent.

        Raises:
            OSError: it, or the one before it, could not be written.
        """
        self.wait()
        tensors = _named(parameters, state)
        tensors[f"{_LOG}/losses"] = torch.tensor(losses, dtype=torch.float64)
        tensors[f"{_LOG}/clip_factors"] = torch.tensor(clip_factors, dtype=torch.float64)
        path = checkpoint_path(self._run, step)
        with contextlib.ExitStack() as stack:
            aside = stack.enter_context(writing_aside(path))
            save_file(tensors, aside, metadata={"step": str(step)})
            rest = stack.pop_all()
        self._settling = self._background.submit(self._settle, rest, path)

    def wait(self) -> None:
        """Waits until what was saved is on the disk.

        Raises:
            OSError: it could not be written.
        """
        settling, self._settling = self._settling, None
        if settling is not None:
            settling.result()

    def close(self) -> None:
        """Waits, whatever comes of it, and stops."""
        self._background.shutdown()

    def start_over(self) -> None:
        """Forgets what was saved."""
        self.wait()
        remove_tree(self._run / FOLDER)
        (self._run / FOLDER).mkdir()

    def _settle(self, rest: contextlib.ExitStack, path: Path) -> None:
        rest.close()  # syncs and renames
        self.digests[path.relative_to(self._run).as_posix()] = file_digest(path)
        let_go(path)


def checkpoint_path(run: Path, step: int) -> Path:
    """Where the checkpoint after ``step`` is."""
    return run / FOLDER / f"step-{step:06d}.safetensors"


def saved_steps(run: Path) -> list[int]:
    """The steps after which a checkpoint is there."""
    return sorted(int(path.stem[5:]) for path in (run / FOLDER).glob("step-*.safetensors"))


def read_checkpoint(run: Path, step: int) -> Checkpoint:
    """The checkpoint after ``step``.

    Raises:
        RecordError: it is missing or damaged.
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
    """All tensors of a safetensors file.

    Raises:
        RecordError: it is missing or damaged.
    """
    if not path.is_file():
        raise RecordError(f"{path} is missing", field=str(path))
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
    except SafetensorError as error:
        raise RecordError(f"{path} is damaged: {error}", field=str(path)) from error


def _named(parameters: Mapping[str, Tensor], state: Mapping[str, Mapping[str, Tensor]]) -> Parameters:
    """Tensors by ``kind/parameter``; of large moments only the rows that are not zero, with their numbers.

    The moments of a word that has not occurred are zero, and a vocabulary is often most of a model.
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
    """Rows that are not zero bit for bit, where at most half of a large matrix is; ``None`` elsewhere."""
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
