"""Devices, memory and disk of the machine."""

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
"""Control groups, version 2 and 1: their folder, the files with a container's memory limit and use, the prefix of its
statistics' names."""

_OUT_OF_MEMORY = (
    "DefaultCPUAllocator",
    "std::bad_alloc",
    "Cannot allocate memory",
    "CUDA error: out of memory",
    "STATUS_ALLOC_FAILED",
)
"""Texts of out-of-memory errors that have no exception class of their own: torch on the CPU, safetensors, cuBLAS."""


def choose_device(name: str = "auto") -> torch.device:
    """The torch device of that name; ``auto`` is the GPU where there is one, else the CPU.

    Raises:
        SettingsError: torch knows no such device, or this machine has none.
    """
    # cuBLAS reads this variable at its first product; without it, equal products may differ in their last bits.
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
    """A batch on a device; tensors that are on it already are not copied."""
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


def free_disk(folder: str | os.PathLike[str]) -> int:
    """Free bytes on the disk of ``folder``, which need not exist yet."""
    place = Path(folder).absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def out_of_disk(error: BaseException) -> int | None:
    """``ENOSPC``, ``EDQUOT`` or ``EFBIG`` where an error means that the disk takes no more bytes; None for others."""
    found = error.errno if isinstance(error, OSError) else None
    for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        # Lance and safetensors are written in Rust, whose errors carry the number in their text only.
        if found == code or f"(os error {code})" in str(error):
            return code
    return None


def free_memory(device: torch.device) -> int:
    """Bytes that this process can still allocate: on the GPU, or in main memory within the container's limits."""
    if device.type == "cuda":
        # What torch's caching allocator has reserved and does not use is free, too.
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + cached
    found = [int(psutil.virtual_memory().available), *(_left_in(*names) for names in _CGROUPS)]
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        found.append(limit - psutil.Process().memory_info().vms)
    return max(0, min(one for one in found if one is not None))


def _left_in(folder: str, most: str, used: str, prefix: str) -> int | None:
    """Bytes left in the control group of a container's processes; None where the group has no limit."""
    try:
        limit = int((Path(folder) / most).read_text())
        statistics = dict(line.split() for line in (Path(folder) / "memory.stat").read_text().splitlines())
        cached = sum(int(statistics[f"{prefix}{kind}_file"]) for kind in ("active", "inactive"))
        return limit - int((Path(folder) / used).read_text()) + cached
    except (OSError, ValueError, KeyError):  # no such group, or "max"
        return None


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Runs torch on one thread, for matrix decompositions.

    Two threads wait for each other at every column: beside other work a decomposition takes 20 times as long on two
    threads, and on an idle machine less than twice as long on one.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error means that a device, or the machine, has run out of memory."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(one in str(error) for one in _OUT_OF_MEMORY)


def release_memory() -> None:
    """Returns the memory of unreferenced tensors to the system and to the GPU."""
    gc.collect()
    trim_heap()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def within_memory(work: Callable[[], T], may_halve: Callable[[], bool], halve: Callable[[], None]) -> T:
    """Runs ``work``; where memory runs out, runs it again from its beginning with half the memory.

    Args:
        work: What to run.
        may_halve: Whether ``work`` can still be made to take less memory.
        halve: Makes ``work`` take about half the memory.

    Returns:
        The result of ``work``.

    Raises:
        RuntimeError, MemoryError: as ``work`` raised it, where ``may_halve`` says no or it is another error.
    """
    while True:
        try:
            return work()
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error) or not may_halve():
                raise
        # Outside the except clause, since the error's traceback refers to the tensors of the failed attempt.
        release_memory()
        halve()


def trim_heap() -> None:
    """Returns freed pages of main memory to the system; takes milliseconds.

    Tensors of changing sizes fragment glibc's heap, which then holds hundreds of free megabytes. With another C library
    nothing is done.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def peak_memory() -> int:
    """Peak resident set size of this process so far, in bytes."""
    # Kilobytes on Linux, bytes on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class SavedBytes:
    """Context that counts the bytes of the tensors that autograd saves for a backward pass, each storage once.

    Args:
        beside: Tensors that do not count, since they are in memory anyway (parameters).
    """

    def __init__(self, beside: Iterable[Tensor] = ()) -> None:
        self._beside = {tensor.untyped_storage().data_ptr() for tensor in beside}
        self._saved: dict[int, int] = {}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._count, lambda tensor: tensor)

    @property
    def total(self) -> int:
        """Bytes saved so far."""
        return sum(self._saved.values())

    def __enter__(self) -> SavedBytes:
        self._hooks.__enter__()
        return self

    def __exit__(self, *raised: object) -> None:
        self._hooks.__exit__(*raised)

    def _count(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._beside:
            self._saved[storage.data_ptr()] = storage.nbytes()
        return tensor


def readable_bytes(count: float) -> str:
    """A number of bytes for people: ``1536`` as ``1.5 kB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
