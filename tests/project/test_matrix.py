"""Which versions the matrix takes, what it keeps, and that it leaves no quick test out."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.matrix import ENTRIES, PACKAGES, ROOT, Chosen, Entry, Outcome, declared, parts_of_the_tests, within

LISTED = """\
torch (2.15.0)
Available versions: 2.15.0, 2.14.1, 2.13.0+cpu, 2.13.0, 2.10.0, 2.9.1, 2.7.1, 2.7.0, 2.6.0, 2.15.0.dev1
  INSTALLED: 2.13.0+cpu
  LATEST:    2.15.0
"""


@pytest.mark.parametrize(
    ("ranged", "end", "first"),
    [
        ("torch>=2.7", "oldest", ["2.7.0", "2.7.1", "2.9.1"]),
        ("torch>=2.7", "newest", ["2.15.0", "2.14.1", "2.13.0"]),
        ("torch>=2.7,!=2.7.0", "oldest", ["2.7.1", "2.9.1", "2.10.0"]),
        ("torch>=2.7,<2.14", "newest", ["2.13.0", "2.10.0", "2.9.1"]),
    ],
)
def test_versions_of_the_range_come_from_its_end_inwards(ranged: str, end: str, first: list[str]) -> None:
    assert within(Requirement(ranged), LISTED, end)[:3] == first  # type: ignore[arg-type]


def test_a_package_that_no_index_has_gives_no_version() -> None:
    assert within(Requirement("torch>=2.7"), "ERROR: No matching distribution found for torch\n", "oldest") == []


def test_the_packages_of_the_matrix_are_requirements_with_a_lower_end() -> None:
    for package in PACKAGES:
        assert any(each.operator == ">=" for each in declared()[package].specifier)
    assert {package for chosen in ENTRIES.values() for package in chosen} == set(PACKAGES)


def test_what_was_done_of_an_entry_is_known_to_the_next_call(tmp_path: Path) -> None:
    outcome = Outcome({"torch": Chosen("2.7.1", ["2.7.0"])}, of="code")
    outcome.parts["tests/tasks"] = {"passed": 5, "failed": 0, "skipped": 1, "status": 0, "seconds": 2.5}
    (tmp_path / "oldest").mkdir()
    outcome.write(tmp_path / "oldest" / "outcome.json")

    again = Entry("oldest", tmp_path).outcome

    assert again == outcome
    assert again.well
    assert (again.count("passed"), again.count("skipped")) == (5, 1)
    assert str(again.versions["torch"]) == "2.7.1 (not to be had: 2.7.0)"


@pytest.mark.parametrize("status", [1, 2])
def test_an_entry_with_a_part_that_failed_or_without_any_part_is_not_well(status: int) -> None:
    assert not Outcome().well
    assert not Outcome(parts={"a": {"status": 0}, "b": {"status": status}}).well


def test_every_file_of_tests_is_in_a_part_but_those_of_servers_and_of_style() -> None:
    parts = [Path(ROOT, part.split()[0]) for part in parts_of_the_tests()]

    for file in (ROOT / "tests").rglob("test_*.py"):
        inside = any(file == part or part in file.parents for part in parts)
        assert inside != file.is_relative_to(ROOT / "tests" / "service"), file


def test_an_unknown_entry_is_a_usage_error() -> None:
    command = [sys.executable, str(ROOT / "tests" / "matrix.py"), "--only", "median"]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=60)

    assert finished.returncode == 2
    assert "'median'" in finished.stderr
