"""SHA-256 digests of files, folders, JSON values and model weights.

Importing this module does not import torch, which takes seconds: stores digest JSON in processes that have no tensors.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from influence_engine.errors import DigestMismatchError

if TYPE_CHECKING:
    from torch import Tensor

_CHUNK = 2**23
"""Bytes that are read and hashed at once. A thread that hashes waits for the interpreter, up to 5 ms, between any two
chunks: beside one that imports, small ones would take longer to wait for than to hash."""

_THREADS = min(4, os.cpu_count() or 1)
"""Files that are hashed at once; hashing and reading leave the interpreter to other threads."""


def json_digest(value: Any) -> str:
    """Digest of a JSON value in one canonical form (sorted keys, no spaces, UTF-8).

    Arrays and tensors in it stand as ``described`` says.

    Raises:
        TypeError, ValueError: something in it is neither JSON nor an array, or a number is not finite.
    """
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False, default=described
    )
    return hashlib.sha256(text.encode("utf-8", errors="surrogatepass")).hexdigest()


def described(value: Any) -> Any:
    """What stands in JSON for a value that is none: ``dtype``, ``shape`` and SHA-256 of an array's or tensor's bytes.

    An array and a tensor of the same numbers are the same; a scalar of numpy is its number. For ``json.dumps``.

    Raises:
        TypeError: the value is something else.
    """
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, np.generic):
        return value.item()
    torch = sys.modules.get("torch")  # where nobody has imported it, nothing is a tensor
    if torch is not None and isinstance(value, torch.Tensor):
        dtype, content = str(value.dtype).removeprefix("torch."), tensor_bytes(value.to_dense())
    elif isinstance(value, np.ndarray) and value.dtype.kind in "OUS":  # the bytes of objects are addresses
        return value.tolist()
    elif isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        dtype = value.dtype.name
        content = value.astype(value.dtype.newbyteorder("<")).tobytes()
    else:
        raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")
    return {"dtype": dtype, "shape": list(value.shape), "sha256": hashlib.sha256(content).hexdigest()}


def file_digest(path: str | os.PathLike[str]) -> str:
    """Digest of a file's bytes."""
    digest = hashlib.sha256()
    with Path(path).open("rb", buffering=0) as file:
        chunk = memoryview(bytearray(min(_CHUNK, os.fstat(file.fileno()).st_size + 1)))
        while count := file.readinto(chunk):
            digest.update(chunk[:count])
    return digest.hexdigest()


def folder_digests(
    folder: str | os.PathLike[str], *, skip: Iterable[str] = (), known: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Digest of every file below ``folder``, by its path relative to it.

    Args:
        folder: The folder.
        skip: Relative paths to leave out.
        known: Digests by relative path that the caller took while writing the files.
    """
    root = Path(folder)
    left_out = set(skip)
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
    taken = known or {}
    return {name: taken.get(name) or file_digest(root / name) for name in names if name not in left_out}


def verify_folder(
    folder: str | os.PathLike[str],
    expected: Mapping[str, str],
    *,
    meanwhile: Callable[[], object] | None = None,
    each: Callable[[str], object] = lambda name: None,
) -> None:
    """Checks the digest of every file that ``expected`` names by its relative path, several at a time.

    Args:
        folder: The folder.
        expected: The digests.
        meanwhile: Work that is done on this thread while others read the files, such as importing what will be needed.
            It must trust nothing that is in the folder.
        each: Called with the name of every file whose digest was right.

    Raises:
        DigestMismatchError: a file is missing or differs; the message names the file and both digests. It takes the
            place of what ``meanwhile`` raises.
    """
    root = Path(folder)
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="verify") as threads:
        found = {name: threads.submit(_digest_or_none, root / name) for name in expected}
        try:
            if meanwhile is not None:
                meanwhile()
        finally:
            for name, digest in expected.items():
                _check_digest(root / name, digest, found[name].result())
                each(name)


def _digest_or_none(path: Path) -> str | None:
    return file_digest(path) if path.is_file() else None


def _check_digest(path: Path, expected: str, found: str | None) -> None:
    if found is None:
        raise DigestMismatchError(f"{path} is missing; its manifest lists it with digest {expected}", field=str(path))
    if found != expected:
        raise DigestMismatchError(
            f"{path} has changed since it was written: its digest is {found}, its manifest says {expected}. "
            "Restore the file, or build it again.",
            field=str(path),
        )


def tensor_bytes(tensor: Tensor) -> bytes:
    """A tensor's values as contiguous bytes, whatever its dtype (bfloat16 included) and device."""
    return bytes(_memory(tensor))


def _memory(tensor: Tensor) -> memoryview:
    """``tensor_bytes`` without a copy, of a tensor that is on the CPU and contiguous."""
    import torch  # not at the top: see there

    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy().data if flat.numel() else b"")


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """Digest over names, dtypes, shapes and bytes of named tensors, independent of file format and order."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name]
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(_memory(tensor))
    return digest.hexdigest()
