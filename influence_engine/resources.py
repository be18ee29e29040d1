"""What the machine has: devices, memory, disk."""

from __future__ import annotations

import os
import resource
import shutil
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import psutil
import torch
from torch import Tensor

from influence_engine.errors import ResourceError, SettingsError


def choose_device(name: str = "auto") -> torch.device:
    """The device of that name; ``auto`` is the GPU where there is one, else the CPU.

    Raises:
        SettingsError: torch knows no such device, or it is not there.
    """
    # Read when the first matrix is multiplied there: without it, equal products may differ in their last bits.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise SettingsError(f"device {name!r} cannot be used: {error}", field="device") from error
    return device


def to_device(batch: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """The batch on a device; tensors that are there already are not copied."""
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


def require_disk(folder: str | os.PathLike[str], needed: int) -> None:
    """Checks before anything is written that ``needed`` bytes fit on the disk of ``folder``.

    Raises:
        ResourceError: they do not; the message says how much there is.
    """
    place = Path(folder).absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < needed:
        raise ResourceError(
            f"{folder} needs {readable_bytes(needed)} of disk and {readable_bytes(free)} are free; "
            "fewer index.dimensions or index.coordinates need less",
            field=str(folder),
        )


def free_memory(device: torch.device) -> int:
    """Bytes that a device can still give: the GPU's, or main memory's."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def peak_memory() -> int:
    """The most bytes that this process has held in main memory so far."""
    # Kilobytes on Linux, bytes on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class SavedBytes:
    """Counts the bytes of what autograd keeps for a backward pass, each storage once, while it is entered.

    Args:
        beside: Tensors that are there anyway and do not count.
    """

    def __init__(self, beside: Iterable[Tensor] = ()) -> None:
        self._beside = {tensor.untyped_storage().data_ptr() for tensor in beside}
        self._kept: dict[int, int] = {}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._keep, lambda tensor: tensor)

    @property
    def total(self) -> int:
        """Bytes so far."""
        return sum(self._kept.values())

    def __enter__(self) -> SavedBytes:
        self._hooks.__enter__()
        return self

    def __exit__(self, *raised: object) -> None:
        self._hooks.__exit__(*raised)

    def _keep(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._beside:
            self._kept[storage.data_ptr()] = storage.nbytes()
        return tensor


def readable_bytes(count: float) -> str:
    """``1536`` as ``1.5 kB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
