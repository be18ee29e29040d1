"""Promises: every file is verified, whatever else is done meanwhile, and the message names what is wrong."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from influence_engine.digests import file_digest, folder_digests, tensor_bytes, verify_folder, weights_digest
from influence_engine.errors import DigestMismatchError, ModelError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(9):
        (tmp_path / f"{number}.bin").write_bytes(bytes([number]) * (number * 1000))
    return tmp_path


@pytest.mark.parametrize("size", [0, 1, 2**23 - 1, 2**23, 2**23 + 1, 2**24 + 7])
def test_a_file_of_any_size_has_the_sha_256_of_its_bytes(tmp_path: Path, size: int) -> None:
    content = (bytes(range(251)) * (size // 251 + 1))[:size]
    (tmp_path / "file").write_bytes(content)

    assert file_digest(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_a_changed_and_a_missing_file_are_found_and_named_the_first_of_them_first(folder: Path) -> None:
    expected = folder_digests(folder)
    verify_folder(folder, expected)
    (folder / "7.bin").write_bytes(b"changed")
    (folder / "3.bin").unlink()

    with pytest.raises(DigestMismatchError, match=r"3\.bin is missing"):
        verify_folder(folder, expected)
    with pytest.raises(DigestMismatchError, match=r"7\.bin has changed"):
        verify_folder(folder, {name: digest for name, digest in expected.items() if name != "3.bin"})


def test_what_is_done_meanwhile_is_done_once_and_its_error_comes_through_where_the_files_are_in_order(
    folder: Path,
) -> None:
    done: list[int] = []
    verify_folder(folder, folder_digests(folder), meanwhile=lambda: done.append(1))
    assert done == [1]

    def fails() -> None:
        raise ModelError("no such class")

    with pytest.raises(ModelError, match="no such class"):
        verify_folder(folder, folder_digests(folder), meanwhile=fails)


def test_a_changed_file_is_the_error_whatever_fails_meanwhile(folder: Path) -> None:
    expected = folder_digests(folder)
    (folder / "8.bin").write_bytes(b"changed")

    def fails() -> None:
        raise ModelError("reads nonsense")

    with pytest.raises(DigestMismatchError, match=r"8\.bin has changed"):
        verify_folder(folder, expected, meanwhile=fails)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_the_digest_of_weights_is_over_the_bytes_of_every_tensor(dtype: torch.dtype) -> None:
    weights = {"b": torch.arange(12).reshape(3, 4).to(dtype).T, "a": torch.empty(0, dtype=dtype)}
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(f"{name}|{dtype}|{tuple(weights[name].shape)}|".encode() + tensor_bytes(weights[name]))

    assert weights_digest(weights) == digest.hexdigest()
