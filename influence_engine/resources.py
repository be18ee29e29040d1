"""What the machine has: devices, memory, disk."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import os
import resource
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import psutil
import torch
from torch import Tensor

from influence_engine.errors import SettingsError

T = TypeVar("T")

_CGROUPS = (
    ("/sys/fs/cgroup", "memory.max", "memory.current", ""),
    ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
)
"""Where a container sees its own limit, what it uses, and how its statistics are called: versions 2 and 1."""

_OUT_OF_MEMORY = (
    "DefaultCPUAllocator",
    "std::bad_alloc",
    "Cannot allocate memory",
    "CUDA error: out of memory",
    "STATUS_ALLOC_FAILED",
)
"""In the texts of errors that are of no class of their own: torch on the processor, safetensors, cuBLAS."""


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


def free_disk(folder: str | os.PathLike[str]) -> int:
    """Bytes free on the disk that ``folder`` is on, or will be."""
    place = Path(folder).absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def out_of_disk(error: BaseException) -> int | None:
    """Which of ``ENOSPC``, ``EDQUOT`` and ``EFBIG`` an error says: the disk takes no more. None for any other error."""
    found = error.errno if isinstance(error, OSError) else None
    for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        # Lance and safetensors are written in Rust, whose errors have the number in their text only.
        if found == code or f"(os error {code})" in str(error):
            return code
    return None


def free_memory(device: torch.device) -> int:
    """Bytes that a device can still give this process: the GPU's, or main memory's within the container's limits."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # by torch, for what comes next
        return int(torch.cuda.mem_get_info(device)[0]) + kept
    found = [int(psutil.virtual_memory().available), *(_left_in(*names) for names in _CGROUPS)]
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        found.append(limit - psutil.Process().memory_info().vms)
    return max(0, min(one for one in found if one is not None))


def _left_in(folder: str, most: str, used: str, prefix: str) -> int | None:
    """Bytes left in the control group that a container's processes are in; None where it has no limit."""
    try:
        limit = int((Path(folder) / most).read_text())
        statistics = dict(line.split() for line in (Path(folder) / "memory.stat").read_text().splitlines())
        cached = sum(int(statistics[f"{prefix}{kind}_file"]) for kind in ("active", "inactive"))
        return limit - int((Path(folder) / used).read_text()) + cached
    except (OSError, ValueError, KeyError):  # no such group, or "max"
        return None


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Decompositions of matrices on one thread: beside other work they take 20 times as long on two, which wait for
    each other at every column, and alone not twice as long on one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device, or the machine, has no more memory to give."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(one in str(error) for one in _OUT_OF_MEMORY)


def release_memory() -> None:
    """Gives back what nothing refers to any more."""
    gc.collect()
    trim_heap()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def within_memory(work: Callable[[], T], may_halve: Callable[[], bool], halve: Callable[[], None]) -> T:
    """The result of ``work``: where memory runs out, begun again after ``halve`` has made it take less.

    Raises:
        RuntimeError, MemoryError: as ``work`` raised it, where there is nothing left to halve or it is another error.
    """
    while True:
        try:
            return work()
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error) or not may_halve():
                raise
        # Here, since the error held on to the tensors of where it was raised.
        release_memory()
        halve()


def trim_heap() -> None:
    """Gives freed pages of main memory back to the system; takes milliseconds.

    Tensors of changing sizes tear glibc's heap to pieces, of which it keeps hundreds of megabytes. Where the C library
    is another one, nothing is done.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


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
