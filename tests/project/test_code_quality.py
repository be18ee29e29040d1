"""Style, types and layers of the whole house are tests like any other."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("audit_service", "influence_engine")
LONGEST_MODULE = 400


def run(*command: str) -> None:
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert finished.returncode == 0, f"{' '.join(command)}\n{finished.stdout}{finished.stderr}"


def test_ruff_finds_nothing() -> None:
    run(sys.executable, "-m", "ruff", "check", ".")


def test_ruff_would_format_nothing() -> None:
    run(sys.executable, "-m", "ruff", "format", "--check", ".")


@pytest.mark.slow
def test_the_strict_type_checker_finds_nothing() -> None:
    run(sys.executable, "-m", "mypy")


def test_imports_go_downwards_only() -> None:
    run(str(Path(sysconfig.get_path("scripts")) / "lint-imports"))


def test_no_module_is_longer_than_the_house_allows() -> None:
    lengths = {
        path.relative_to(ROOT).as_posix(): len(path.read_text(encoding="utf-8").splitlines())
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
    }

    assert {name: length for name, length in lengths.items() if length > LONGEST_MODULE} == {}
