"""What a user gets from ``pip install bento-audit``: both packages, the templates of ``init``, and nothing else."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert finished.returncode == 0, finished.stderr
    (built,) = folder.glob("bento_audit-*.whl")
    return built


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_the_wheel_holds_the_two_packages_and_nothing_beside_them(names: set[str]) -> None:
    tops = {name.partition("/")[0] for name in names if ".dist-info/" not in name}

    assert tops == {"audit_service", "influence_engine"}


def test_the_wheel_holds_every_module(names: set[str]) -> None:
    modules = {
        path.relative_to(ROOT).as_posix()
        for package in ("audit_service", "influence_engine")
        for path in (ROOT / package).rglob("*.py")
    }

    assert modules <= names


def test_the_wheel_holds_the_templates_of_init_the_types_and_the_licence(names: set[str]) -> None:
    templates = {
        path.relative_to(ROOT).as_posix() for path in (ROOT / "audit_service/workflows/adoption/templates").iterdir()
    }

    assert templates
    assert templates <= names
    assert {"audit_service/py.typed", "influence_engine/py.typed"} <= names
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_the_wheel_holds_the_pages_and_the_migrations(names: set[str]) -> None:
    pages = {path.relative_to(ROOT).as_posix() for path in (ROOT / "audit_service/templates").glob("*.html")}

    assert "audit_service/templates/page.html" in pages
    assert pages <= names
    assert "audit_service/store/migrations/env.py" in names
    assert "audit_service/store/migrations/predictions/v0001_first_version.py" in names


def test_the_wheel_installs_the_command(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (entry_points,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))

        assert "bento-audit = audit_service.cli:main" in archive.read(entry_points).decode()
