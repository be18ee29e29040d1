"""The commands of the README: what make would run, and what it need not run again."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def dry_run(folder: Path, *arguments: str) -> str:
    """What make would run in a copy of the project's head, without running it."""
    for name in ("Makefile", "pyproject.toml", "constraints-cpu.txt"):
        if not (folder / name).exists():
            shutil.copy(ROOT / name, folder)
    # Within `make test` the environment holds that make's own variables, which this one must not take over.
    environment = {"PATH": os.environ["PATH"]}
    finished = subprocess.run(
        ["make", "--dry-run", *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=60
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


@pytest.mark.parametrize(("arguments", "check"), [((), False), (("CHECK=1",), True), (("CHECK=0",), False)])
def test_check_asks_once_and_without_it_the_server_stays_up(
    tmp_path: Path, arguments: tuple[str, ...], check: bool
) -> None:
    last = dry_run(tmp_path, "demo", *arguments).splitlines()[-1]
    assert re.fullmatch(r"\S*bento-audit demo sentiment --began \d+ *(--check)?", last)
    assert last.endswith("--check") is check


def test_a_fresh_folder_gets_an_environment_with_the_pinned_torch(tmp_path: Path) -> None:
    commands = dry_run(tmp_path, "test", "PIP_ARGS=--extra-index-url https://wheels.example")

    assert "-m venv .venv" in commands
    assert "-c constraints-cpu.txt --extra-index-url https://wheels.example -e '.[dev]'" in commands
    assert "torch==" in (ROOT / "constraints-cpu.txt").read_text()


def test_a_second_call_installs_nothing_until_the_requirements_change(tmp_path: Path) -> None:
    dry_run(tmp_path, "test")
    stamps = tmp_path / ".venv"
    stamps.mkdir()
    for stamp in (".made", ".installed-dev"):
        (stamps / stamp).touch()

    assert "pip install" not in dry_run(tmp_path, "test")

    later = (stamps / ".installed-dev").stat().st_mtime + 10
    os.utime(tmp_path / "pyproject.toml", (later, later))
    assert "pip install" in dry_run(tmp_path, "test")


@pytest.mark.parametrize(("arguments", "listed"), [((), False), (("LIST=1",), True)])
def test_the_commands_of_the_documents_can_be_listed_or_run(
    tmp_path: Path, arguments: tuple[str, ...], listed: bool
) -> None:
    command = dry_run(tmp_path, "docs-check", *arguments).rstrip()

    assert command.endswith("docs/check_commands.py" + " --list" * listed)


@pytest.mark.parametrize(("only", "peers"), [("", True), ("query", False), ("query peers", True)])
def test_bench_brings_the_packages_that_it_compares_with_where_they_are_asked_for(
    tmp_path: Path, only: str, peers: bool
) -> None:
    requirements = Path("benchmarks") / "peers" / "requirements.txt"
    (tmp_path / requirements).parent.mkdir(parents=True)
    shutil.copy(ROOT / requirements, tmp_path / requirements)

    commands = dry_run(tmp_path, "bench", f"ONLY={only}")

    assert ("--no-deps" in commands) is peers
    chosen = " ".join(f"--only {one}" for one in only.split())
    assert commands.rstrip().endswith(f"benchmarks/bench.py {chosen}".rstrip())


def make_test(tmp_path: Path, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """``make test`` with a script in the place of Python."""
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    for stamp in (".made", ".installed-dev"):
        (tmp_path / stamp).touch()
    command = ["make", "-o", str(tmp_path / ".installed-dev"), "test", f"VENV={tmp_path}", *arguments]
    environment = {"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)


def test_units_run_beside_each_other_and_servers_alone(tmp_path: Path) -> None:
    units, servers = make_test(tmp_path, 'echo "$*"').stdout.splitlines()

    assert units.startswith("-m pytest -m not service -n 2")
    assert servers.startswith("-m pytest -m service")


def test_units_and_servers_say_which_of_them_took_longest(tmp_path: Path) -> None:
    for call in make_test(tmp_path, 'echo "$*"').stdout.splitlines():
        assert "--durations=25" in call.split()


def statuses(units: int, servers: int) -> str:
    """A script that ends as pytest does."""
    return f'case "$*" in *"not service"*) exit {units};; *) exit {servers};; esac'


@pytest.mark.parametrize(
    ("units", "servers", "well"),
    [(0, 0, True), (0, 5, True), (5, 0, True), (1, 0, False), (0, 1, False), (5, 5, False)],
)
def test_a_part_without_servers_is_no_failure_but_nothing_at_all_to_test_is(
    tmp_path: Path, units: int, servers: int, well: bool
) -> None:
    finished = make_test(tmp_path, statuses(units, servers), "PYTEST_ARGS=tests/project")

    assert (finished.returncode == 0) is well


@pytest.mark.parametrize(("units", "servers", "well"), [(0, 0, True), (0, 5, False), (5, 0, False), (0, 1, False)])
def test_of_the_whole_both_calls_have_something_to_run(tmp_path: Path, units: int, servers: int, well: bool) -> None:
    finished = make_test(tmp_path, statuses(units, servers))

    assert (finished.returncode == 0) is well


def test_what_is_compiled_once_is_kept(tmp_path: Path) -> None:
    finished = make_test(tmp_path, 'echo "writes: ${PYTHONDONTWRITEBYTECODE-yes}"')

    assert "writes: yes" in finished.stdout
    assert "writes: 1" not in finished.stdout


def test_the_continuous_integration_run_is_the_test_target_with_skips_forbidden() -> None:
    script = ROOT / ".ci" / "run"
    lines = script.read_text().splitlines()

    assert os.access(script, os.X_OK)
    assert "set -euo pipefail" in lines
    assert "export BENTO_AUDIT_FORBID_SKIPS=1" in lines
    assert lines[-1].startswith("make test")


def test_the_continuous_integration_run_keeps_which_tests_took_longest(tmp_path: Path) -> None:
    script = (ROOT / ".ci" / "run").read_text()
    (kept,) = re.findall(r'^trap "(sed .*)" EXIT$', script, re.MULTILINE)
    source = (
        "import time\n\ndef test_slow():\n    time.sleep(0.05)\n\ndef test_skips():\n    __import__('pytest').skip()\n"
    )
    (tmp_path / "test_some.py").write_text(source)
    (tmp_path / "build").mkdir()
    command = [sys.executable, "-m", "pytest", "-ra", "--durations=25", "--rootdir", str(tmp_path), "-c", os.devnull]
    finished = subprocess.run([*command, "."], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    (tmp_path / "build" / "ci-tests.log").write_text(finished.stdout + finished.stdout)  # units, then servers

    subprocess.run(kept, shell=True, cwd=tmp_path, check=True)

    slowest = (tmp_path / "build" / "ci-slowest.txt").read_text()
    assert slowest.count("slowest 25 durations") == slowest.count("call     test_some.py::test_slow") == 2
