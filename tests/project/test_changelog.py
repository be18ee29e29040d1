"""The changelog and the versions: one number, everywhere."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from pathlib import Path

import audit_service
import influence_engine

ROOT = Path(__file__).resolve().parents[2]
CHANGELOG = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
HEADING = re.compile(r"^## \[(\d+\.\d+\.\d+)\] - (\d{4}-\d{2}-\d{2})$", re.MULTILINE)


def test_the_newest_heading_is_the_version_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

    newest, _ = HEADING.findall(CHANGELOG)[0]
    assert newest == project["version"]


def test_every_heading_is_a_version_with_its_date_and_the_newest_comes_first() -> None:
    found = HEADING.findall(CHANGELOG)

    assert len(found) == len(re.findall(r"^## ", CHANGELOG, re.MULTILINE))
    versions = [tuple(map(int, version.split("."))) for version, _ in found]
    assert versions == sorted(set(versions), reverse=True)
    assert [day for _, day in found] == sorted((day for _, day in found), reverse=True)


def test_changes_stand_under_the_headings_of_keep_a_changelog_and_are_few() -> None:
    kinds = set(re.findall(r"^### (.+)$", CHANGELOG, re.MULTILINE))

    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert len(CHANGELOG.splitlines()) <= 100


def test_both_packages_have_the_version_of_the_distribution() -> None:
    installed = importlib.metadata.version("bento-audit")

    assert (influence_engine.__version__, audit_service.__version__) == (installed, installed)
