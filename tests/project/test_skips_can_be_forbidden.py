"""The switch of the continuous integration run: a test that skips itself there is a failed test."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

SKIPPING_TEST = """
import pytest

def test_skips_itself():
    pytest.skip("no database here")
"""
SKIPPING_MODULE = """
import pytest

pytest.importorskip("a_module_that_does_not_exist")
"""
SERVICE_TEST = """
import pytest

@pytest.mark.service
def test_one(): pass
"""


def run_pytest(folder: Path, *, forbid: bool) -> subprocess.CompletedProcess[str]:
    shutil.copy(ROOT / "conftest.py", folder)
    environment = {**os.environ, "BENTO_AUDIT_FORBID_SKIPS": "1" if forbid else ""}
    command = [sys.executable, "-m", "pytest", "-ra", "-p", "no:cacheprovider", "--rootdir", str(folder), str(folder)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("source", [SKIPPING_TEST, SKIPPING_MODULE], ids=["test", "module"])
def test_a_skip_fails_the_run_where_skips_are_forbidden(tmp_path: Path, source: str) -> None:
    (tmp_path / "test_some.py").write_text(source)

    finished = run_pytest(tmp_path, forbid=True)

    assert finished.returncode != 0
    assert "BENTO_AUDIT_FORBID_SKIPS is set" in finished.stdout


def test_a_skip_is_fine_and_counted_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(SKIPPING_TEST)

    finished = run_pytest(tmp_path, forbid=False)

    assert finished.returncode == 0
    assert "no database here" in finished.stdout
    assert "1 skipped" in finished.stdout


def test_tests_that_drive_a_server_come_last(tmp_path: Path) -> None:
    (tmp_path / "service").mkdir()
    (tmp_path / "service" / "test_a.py").write_text(SERVICE_TEST)
    (tmp_path / "test_b.py").write_text("def test_two(): pass\n")

    output = run_pytest(tmp_path, forbid=False).stdout

    assert output.index("test_b.py .") < output.index("service/test_a.py .")
