"""Promise: what the machine does not have is said before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from influence_engine.errors import ResourceError, SettingsError
from influence_engine.resources import choose_device, readable_bytes, require_disk


@pytest.mark.parametrize("name", ["cuda:97", "gpu"])
def test_a_device_that_is_not_there_is_named(name: str) -> None:
    with pytest.raises(SettingsError, match=f"device '{name}' cannot be used"):
        choose_device(name)


def test_auto_takes_a_gpu_only_where_there_is_one() -> None:
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert choose_device("cpu").type == "cpu"


def test_too_little_disk_says_how_much_is_there(tmp_path: Path) -> None:
    require_disk(tmp_path / "not" / "yet" / "there", 1)
    with pytest.raises(ResourceError, match=r"needs 9000000\.0 TB of disk and .* are free"):
        require_disk(tmp_path / "index", 9 * 10**18)


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (999, "999 B"), (1536, "1.5 kB"), (2.5e12, "2.5 TB")])
def test_bytes_are_readable(count: float, text: str) -> None:
    assert readable_bytes(count) == text
