"""What the README shows works as it is shown, and what it names exists."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from audit_service.cli.group import VERBS

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = sorted(page.relative_to(ROOT).as_posix() for page in (ROOT / "docs").glob("*.md"))
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "SECURITY.md", *PAGES)
MOST_LINES = 150


def blocks(language: str, document: str = "README.md") -> list[str]:
    text = (ROOT / document).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def run(source: str, folder: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "BENTOML_DO_NOT_TRACK": "True"}
    finished = subprocess.run(
        [sys.executable, "-c", source], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def block_with(word: str, document: str) -> str:
    (found,) = (block for block in blocks("python", document) if word in block)
    return found


def test_the_readme_is_read_in_one_sitting() -> None:
    assert len(README.splitlines()) <= MOST_LINES


def test_a_task_of_ones_own_explains_a_model_of_ones_own(tmp_path: Path) -> None:
    output = run(block_with("class Points", "docs/your_own_task.md"), tmp_path)

    lines = output.splitlines()
    assert len(lines) == 3
    assert all(re.match(r"[+-]\d\.\d{4} point-\d+ ", line) for line in lines)


def test_the_task_of_ones_own_has_about_twenty_lines() -> None:
    body = block_with("class Points", "docs/your_own_task.md").partition("class Points")[2].partition("\n\n\n")[0]

    assert len([line for line in body.splitlines() if line.strip()]) <= 20


def test_the_service_of_ones_own_is_a_bentoml_service_with_the_audits_endpoints(tmp_path: Path) -> None:
    output = run(block_with("class Classifier", "README.md") + "\nprint(sorted(Classifier.apis))\n", tmp_path)

    assert "'predict'" in output
    assert "'audit_explain'" in output


def test_there_is_no_python_in_the_readme_that_is_not_tested() -> None:
    assert len(blocks("python")) == 1


@pytest.mark.parametrize("page", PAGES)
def test_every_page_is_linked_from_the_readme(page: str) -> None:
    assert f"]({page})" in README


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_verb_and_target_named_exists(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")

    assert set(re.findall(r"`bento-audit (\w+)", text)) <= set(VERBS)
    for target in re.findall(r"`make ([\w-]+)", text):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_link_within_the_repository_leads_somewhere(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")

    folder = (ROOT / document).parent
    for target in re.findall(r"\]\((?!https?://)([^)#]+)[^)]*\)", text):
        assert (folder / target).exists(), target


def test_every_committed_place_in_the_table_of_places_exists() -> None:
    table = README.partition("## Where things are")[2].partition("\n## ")[0]
    places = {
        place
        for row in table.splitlines()
        if "never committed" not in row
        for place in re.findall(r"`([a-z_]+/)`", row)
    }

    assert places
    assert {place for place in places if not (ROOT / place).is_dir()} == set()


def test_the_explanation_shown_is_the_output_of_a_run() -> None:
    shown = README.partition("<!-- explanation:")[2].partition("```text\n")[2].partition("```")[0]

    for part in ("text", "prediction", "base model", "log-odds", "(proponents)", "(opponents)", "replayed"):
        assert part in shown
