"""What the machine has: devices, memory, disk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from influence_engine.errors import ResourceError, SettingsError


def choose_device(name: str = "auto") -> torch.device:
    """The device of that name; ``auto`` is the GPU where there is one, else the CPU.

    Raises:
        SettingsError: torch knows no such device, or it is not there.
    """
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


def readable_bytes(count: float) -> str:
    """``1536`` as ``1.5 kB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
