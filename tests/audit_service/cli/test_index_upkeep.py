"""Promises: an index gets what came after it was built by one verb, and a damaged one is told file by file."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from audit_service.cli.group import main
from audit_service.config import load_config
from audit_service.workflows.index_upkeep import upgrade_index
from audit_service.workspace import Workspace
from influence_engine.errors import DigestMismatchError
from influence_engine.index import current_version
from influence_engine.index.parts import Need, PartContext, PartCost


def bento_audit(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


@pytest.fixture
def version(films: Path) -> Path:
    """The version of the project's index, as if it had been built before there were parts."""
    index = films / "index" / "films"
    version = index / "versions" / current_version(index)
    path = version / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["parts"]
    manifest["format"] = manifest.pop("format_version")
    path.write_text(json.dumps(manifest))
    shutil.rmtree(version / "parts")
    return version


def test_a_dry_run_says_what_would_be_added_and_adds_nothing(version: Path) -> None:
    before = (version / "manifest.json").read_bytes()

    planned = json.loads(bento_audit("index", "upgrade", "films", "--dry-run", "--json").stdout)
    shown = " ".join(bento_audit("index", "upgrade", "films", "--dry-run").stdout.split())

    (part,) = planned["missing"]
    assert (planned["parts"], planned["added"], part["part"], part["needs"]) == ({}, [], "file_sums", [])
    assert part["read_bytes"] > part["disk_bytes"] > 0
    assert "file_sums would be added: about" in shown
    assert (version / "manifest.json").read_bytes() == before


def test_an_upgrade_is_done_once_and_says_what_is_there(version: Path) -> None:
    first = bento_audit("index", "upgrade", "films", "--json")
    again = bento_audit("index", "upgrade", "films", "--json")

    assert (first.exit_code, again.exit_code) == (0, 0)
    assert json.loads(first.stdout)["added"] == ["file_sums"]
    about = json.loads(again.stdout)
    assert (about["added"], set(about["parts"]), about["folder"]) == ([], {"file_sums"}, str(version))
    assert "there since" in bento_audit("index", "upgrade", "films").stdout
    assert json.loads(bento_audit("index", "inspect", "films", "--json").stdout)["parts"].keys() == {"file_sums"}
    assert json.loads(bento_audit("index", "verify", "films", "--json").stdout)["ok"] is True


def test_without_an_index_it_says_how_to_make_one(films: Path) -> None:
    shutil.rmtree(films / "index")
    result = bento_audit("index", "upgrade", "films")

    assert result.exit_code == 1
    assert "make one with: bento-audit index build" in result.stderr.replace("\n", " ")


def test_verify_names_a_file_of_the_table_that_cannot_even_be_read(version: Path) -> None:
    assert bento_audit("index", "upgrade", "films").exit_code == 0
    (file,) = (version / "examples.lance" / "data").iterdir()
    file.write_bytes(file.read_bytes()[:-40])

    result = bento_audit("index", "verify", "films", "--json")

    assert result.exit_code == 1
    error = json.loads(result.stdout)["error"]
    assert (error["code"], error["field"]) == ("digest_mismatch", str(file))
    assert file.name in error["message"]


class Greedy:
    """A part of a test's own that needs everything."""

    name = "greedy"
    version = 1
    needs: frozenset[Need] = frozenset({"model", "task", "examples"})

    def cost(self, version: Path) -> PartCost:
        return PartCost(1.0, 0, 10)

    def add(self, version: Path, into: Path, context: PartContext) -> None:
        assert context.model is not None
        task: Any = context.task
        batch = task.collate(context.examples[:2])
        measured = task.measurement(task.outputs(context.model, batch), batch)
        (into / "ids.json").write_text(json.dumps([example["example_id"] for example in context.examples]))
        assert measured.shape == (2,)


def test_a_part_is_given_model_task_and_examples_in_the_order_of_the_index(version: Path) -> None:
    config = load_config("films")

    found = upgrade_index(Workspace(config), [Greedy()])

    assert found.added == ["greedy"]
    run = json.loads((config.run_folder / "examples.json").read_text())
    assert json.loads((version / "parts" / "greedy-1" / "ids.json").read_text()) == run
    assert bento_audit("index", "verify", "films").exit_code == 0


def test_a_part_is_not_made_from_data_that_are_not_the_indexed_ones(version: Path, films: Path) -> None:
    rows = list(csv.reader((films / "train.csv").open(newline="")))
    rows = [rows[0], *([key, f"{sentence} indeed", label] for key, sentence, label in rows[1:])]
    with (films / "train.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)

    with pytest.raises(DigestMismatchError, match="are not those that the index"):
        upgrade_index(Workspace(load_config("films")), [Greedy()])
    assert not (version / "parts").exists()
