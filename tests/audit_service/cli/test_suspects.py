"""Promises of `bento-audit suspects`: training examples ranked, in the terminal, as JSON and as a file to act on."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from audit_service.cli.group import main
from audit_service.config import load_config
from audit_service.workflows.index_building import build_index
from audit_service.workflows.suspects import find_suspects, write_suspects
from audit_service.workspace import Workspace
from influence_engine.data import DataSettings, load_examples
from influence_engine.evaluation import Suspect
from influence_engine.training import Run
from tests.audit_service.conftest import FILMS_CONFIG


def bento_audit(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def answer(*arguments: str) -> dict[str, Any]:
    result = bento_audit("suspects", *arguments, "--json")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_json_names_the_most_harmful_examples_and_what_they_were_ranked_with(films: Path) -> None:
    found = answer("films", "--top-k", "7")

    run = Run.open(films / "runs" / "films")
    suspects = found["suspects"]
    assert [one["rank"] for one in suspects] == [one["rank_by_harm"] for one in suspects] == list(range(1, 8))
    harms = [one["harm"] for one in suspects]
    assert harms == sorted(harms, reverse=True)
    assert found["training"] == len(run.example_ids)
    assert {one["example_id"] for one in suspects} <= set(run.example_ids)
    assert found["model"]["digest"] == run.digests["model"]
    assert found["held_out"] > 0
    assert found["seen_in_training"] == []
    assert suspects[0]["fields"]["text"]


def test_the_table_shows_harm_share_loss_label_and_text_and_says_what_harm_means(films: Path) -> None:
    result = bento_audit("suspects", "films", "--top-k", "3")

    assert result.exit_code == 0, result.output
    heading, *rows = result.stdout.splitlines()
    assert heading.split() == ["rank", "harm", "harmed", "loss", "label", "training", "text"]
    (first, *_) = answer("films", "--top-k", "1")["suspects"]
    for part in ("1", f"{first['harm']:+.4f}", f"{first['loss']:.3f}", first["label"], first["fields"]["text"]):
        assert part in rows[0]
    assert "lowered the log-odds of the true label" in " ".join(result.stdout.split())


def test_another_measure_ranks_otherwise(films: Path) -> None:
    losses = [one["loss"] for one in answer("films", "--by", "loss")["suspects"]]

    assert losses == sorted(losses, reverse=True)


def test_the_file_holds_every_training_example_and_can_be_trained_on(films: Path) -> None:
    result = bento_audit("suspects", "films", "--out", "suspects.csv", "--top-k", "2")

    assert result.exit_code == 0, result.output
    with (films / "suspects.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    config = load_config(films / "configs" / "films.yaml")
    run = Run.open(config.run_folder)
    assert sorted(row["example_id"] for row in rows) == sorted(run.example_ids)
    assert [row["rank"] for row in rows] == [row["rank_by_harm"] for row in rows]
    assert f"{len(rows)} training examples in suspects.csv" in result.stderr
    task = config.task_object(run.load_processor())
    settings = DataSettings.model_validate({"csv": "suspects.csv", "columns": {"id": "example_id"}})
    again = {one["example_id"]: one for one in load_examples(settings, task, films).examples}
    for example in load_examples(config.data.train, task, films).examples:
        same = again[example["example_id"]]
        assert (same["text"], same["label"]) == (example["text"], example["label"])


def suspect(**changes: Any) -> Suspect:
    plain = Suspect("a", 0, "good", None, 0.5, 0.25, 0.1, 0.2, None, 1, 1, 1, None, {"text": "fine", "label": "good"})
    return replace(plain, **changes)


def test_the_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "suspects.csv"
    write_suspects(file, [suspect()])
    before = file.read_bytes()

    with pytest.raises(TypeError):
        write_suspects(file, [suspect(), suspect(fields={"text": [object()]})])

    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_texts_survive_the_file_whatever_is_in_them(tmp_path: Path) -> None:
    text = 'a "fine", film;\nin two lines\tof ünïcode \ud800'

    write_suspects(tmp_path / "suspects.csv", [suspect(fields={"text": text, "parts": [1, "é"]})])

    with (tmp_path / "suspects.csv").open(newline="", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert row["text"] == text.replace("\ud800", "\\ud800")
    assert json.loads(row["parts"]) == [1, "é"]
    assert row["source"] == row["out_of_sample_confidence"] == ""


def test_folds_add_a_confidence_to_rank_by_and_are_trained_once(films: Path) -> None:
    before = answer("films", "--folds", "2", "--dry-run")
    first = bento_audit("suspects", "films", "--folds", "2", "--by", "out_of_sample_confidence")
    second = answer("films", "--folds", "2", "--by", "out_of_sample_confidence")

    assert (before["folds"], before["trainings"]) == (2, 2)
    assert before["training_seconds"] > 0
    assert first.exit_code == 0, first.output
    assert "probability of its label" in " ".join(first.stdout.split())
    confidences = [one["out_of_sample_confidence"] for one in second["suspects"]]
    assert confidences == sorted(confidences)
    assert all(0 <= confidence <= 1 for confidence in confidences)
    assert len(list((films / "state" / "films" / "folds").iterdir())) == 2
    assert answer("films", "--folds", "2", "--dry-run")["trainings"] == 0


def test_a_dry_run_says_how_much_there_is_to_do_and_writes_nothing(films: Path) -> None:
    plan = answer("films", "--dry-run", "--folds", "3", "--out", "suspects.csv")
    shown = bento_audit("suspects", "films", "--dry-run")

    assert plan["pairs"] == plan["held_out"] * plan["training"] > 0
    assert plan["seconds"] > 0
    assert f"{plan['held_out']} held-out x {plan['training']} training" in shown.stdout
    assert not (films / "suspects.csv").exists()
    assert not (films / "state").exists()


def test_held_out_examples_that_were_trained_on_are_warned_of(films: Path) -> None:
    config = films / "configs" / "films.yaml"
    config.write_text(FILMS_CONFIG.replace("part: validation", "part: train, limit: 3"))

    result = bento_audit("suspects", "films")

    assert result.exit_code == 0, result.output
    assert "3 of the 3 held-out examples are training examples, too" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--out", "suspects.xlsx"), "suspects.xlsx ends in '.xlsx'; a CSV file is written"),
        (("--out", "suspects"), "name it *.csv"),
        (("--out", "nowhere/suspects.csv"), "there is no folder nowhere"),
        (("--folds", "1"), "1 fold would leave nothing to train on"),
        (("--folds", "-2"), "-2 is not in the range"),
        (("--folds", "1000"), "at most the number of training examples"),
        (("--by", "out_of_sample_confidence"), "add --folds 5"),
        (("--by", "age"), "'age' is not one of"),
        (("--top-k", "0"), "0 is not in the range"),
    ],
)
def test_what_cannot_be_asked_is_a_usage_error(films: Path, arguments: tuple[str, ...], message: str) -> None:
    result = bento_audit("suspects", "films", *arguments)

    assert result.exit_code == 2, result.output
    assert message in result.stderr.replace("\n", " ")


def test_without_held_out_examples_it_says_what_to_add_to_the_config(films: Path) -> None:
    config = films / "configs" / "films.yaml"
    config.write_text("\n".join(line for line in FILMS_CONFIG.splitlines() if "validation" not in line))

    result = bento_audit("suspects", "films")

    assert result.exit_code == 2
    assert "Add data.validation to" in result.stderr
    assert "films.yaml" in result.stderr


def test_training_data_that_have_changed_since_are_refused(films: Path) -> None:
    table = films / "train.csv"
    table.write_text(table.read_text().replace("superb", "splendid"))

    result = bento_audit("suspects", "films")

    assert result.exit_code == 1
    assert "not those of the index" in result.stderr


@pytest.mark.parametrize("options", [(), ("--folds", "2"), ("--dry-run",)])
def test_before_anything_is_built_it_says_which_command_comes_first(films: Path, options: tuple[str, ...]) -> None:
    (films / "configs" / "plays.yaml").write_text(FILMS_CONFIG)

    result = bento_audit("suspects", "plays", *options)

    assert result.exit_code == 1
    assert "bento-audit finetune plays" in result.stderr.replace("\n", "")


def test_an_adopted_model_is_ranked_but_has_no_record_to_cross_validate(adopted: Path, films: Path) -> None:
    shutil.copytree(adopted / "support", films / "support")
    (films / "configs" / "support.yaml").write_text(
        FILMS_CONFIG.replace("base_model: {path: base}", "model: {path: support}\nindex: {damping: 1.0}")
    )
    build_index(Workspace(load_config(films / "configs" / "support.yaml")))

    ranked = answer("support", "--top-k", "3")
    refused = bento_audit("suspects", "support", "--folds", "2")

    assert len(ranked["suspects"]) == 3
    assert refused.exit_code == 2
    assert "there is no record of how" in refused.stderr


def test_every_measure_is_there_from_python_as_well(films: Path) -> None:
    found = find_suspects(Workspace(load_config(films / "configs" / "films.yaml")), by="self_influence")

    assert [one.rank_by_self_influence for one in found.ranked] == list(range(1, len(found.ranked) + 1))
