"""What the doctor says of the machine."""

from __future__ import annotations

import importlib.util
import py_compile
import sys
from pathlib import Path
from types import ModuleType

import pytest

from audit_service.workflows.diagnosis.machine import bytecode


def imported(folder: Path) -> ModuleType:
    (folder / "heavy.py").write_text("answer = 42\n")
    spec = importlib.util.spec_from_file_location("heavy", folder / "heavy.py")
    assert spec is not None
    return importlib.util.module_from_spec(spec)


def test_packages_that_every_command_would_compile_again_are_noted_with_the_command_that_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    package = imported(tmp_path)

    found = bytecode(package)

    assert (found.state, found.advice) == (
        "note",
        f"compile them once: {sys.executable} -m compileall -q -j 0 {tmp_path.parent}",
    )
    assert "PYTHONDONTWRITEBYTECODE is set" in found.found

    py_compile.compile(str(tmp_path / "heavy.py"))
    assert bytecode(package).state == "ok"


def test_packages_that_the_first_command_compiles_are_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)

    assert bytecode(imported(tmp_path)).state == "ok"
