"""Tensor files are those of safetensors: its library reads what is written here."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from influence_engine.errors import RecordError
from influence_engine.training.tensors import read_tensors, write_tensors

TENSORS = {
    "double": torch.randn(3, dtype=torch.float64),
    "single/müller": torch.randn(2, 3),
    "half": torch.randn(2).half(),
    "brain": torch.randn(2, 1, 2).bfloat16(),
    "long": torch.arange(4),
    "scalar": torch.tensor(2.5),
    "empty": torch.zeros(0, 3),
    "turned": torch.randn(4, 2).T,
    "not a number": torch.tensor([float("nan"), float("inf")]),
}


def test_the_library_reads_every_tensor_as_it_was(tmp_path: Path) -> None:
    write_tensors(tmp_path / "t.safetensors", TENSORS)

    for found in (load_file(tmp_path / "t.safetensors"), read_tensors(tmp_path / "t.safetensors")):
        assert set(found) == set(TENSORS)
        for name, tensor in TENSORS.items():
            assert found[name].dtype == tensor.dtype
            torch.testing.assert_close(found[name], tensor, rtol=0, atol=0, equal_nan=True)


def test_what_the_library_writes_is_read(tmp_path: Path) -> None:
    save_file({"x": torch.ones(3)}, tmp_path / "t.safetensors")

    assert torch.equal(read_tensors(tmp_path / "t.safetensors")["x"], torch.ones(3))


def test_a_file_that_is_cut_off_or_missing_is_named(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    with pytest.raises(RecordError, match=r"t\.safetensors is missing"):
        read_tensors(path)

    write_tensors(path, TENSORS)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(RecordError, match=r"t\.safetensors is damaged"):
        read_tensors(path)


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    write_tensors(path, {"x": torch.ones(3)})

    with pytest.raises(KeyError):
        write_tensors(path, {"x": torch.ones(3, dtype=torch.complex64)})

    assert torch.equal(read_tensors(path)["x"], torch.ones(3))
    assert [file.name for file in tmp_path.iterdir()] == ["t.safetensors"]
