"""Promise: what the machine does not have is found out and said."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from influence_engine.errors import SettingsError
from influence_engine.resources import choose_device, free_disk, out_of_disk, readable_bytes


@pytest.mark.parametrize("name", ["cuda:97", "gpu"])
def test_a_device_that_is_not_there_is_named(name: str) -> None:
    with pytest.raises(SettingsError, match=f"device '{name}' cannot be used"):
        choose_device(name)


def test_auto_takes_a_gpu_only_where_there_is_one() -> None:
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert choose_device("cpu").type == "cpu"


def test_free_disk_is_that_of_the_nearest_folder_that_is_there(tmp_path: Path) -> None:
    assert free_disk(tmp_path / "not" / "yet" / "there") == pytest.approx(free_disk(tmp_path), rel=0.1)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), errno.ENOSPC),
        (OSError("LanceError(IO): Disk quota exceeded (os error 122), structural.rs:254:9"), errno.EDQUOT),
        (SafetensorError("Error while serializing: I/O error: File too large (os error 27)"), errno.EFBIG),
        (OSError(errno.EACCES, "Permission denied"), None),
        (SafetensorError("Error while deserializing header: header too large"), None),
    ],
)
def test_a_full_disk_is_told_from_other_errors(error: Exception, code: int | None) -> None:
    assert out_of_disk(error) == code


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (999, "999 B"), (1536, "1.5 kB"), (2.5e12, "2.5 TB")])
def test_bytes_are_readable(count: float, text: str) -> None:
    assert readable_bytes(count) == text
