"""Every verb works for a task of any kind, or says in a sentence why it makes no sense for this one."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from audit_service.cli.group import main
from influence_engine.index import InfluenceIndex
from tests.audit_service.workflows.other_tasks import TASKS, make_project, rows

INPUTS: dict[str, dict[str, Any]] = {
    "pairs": {"premise": "the film is superb", "hypothesis": "the film is dull"},
    "ratings": {"review": "the film is superb", "weight": 1.0},
    "spans": {"review": "the film is superb"},
}
SPAN = {"span": [12, 18], "label": "praise"}
FEW = ("--queries", "8", "--tuning", "2", "--subsets", "2", "--fraction", "0.1")


def bento_audit(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def shown(*arguments: str) -> str:
    result = bento_audit(*arguments)
    assert result.exit_code == 0, result.output
    return " ".join(result.stdout.split())


def answer(*arguments: str) -> dict[str, Any]:
    result = bento_audit(*arguments, "--json")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def refused(*arguments: str) -> str:
    result = bento_audit(*arguments)
    assert result.exit_code == 2, result.output
    return " ".join(result.stderr.split())


def one_input(name: str) -> tuple[str, str]:
    return "--input", json.dumps(INPUTS[name])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose three tasks have been through finetune and index build."""
    folder = tmp_path_factory.mktemp("other")
    make_project(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in TASKS:
            assert "bento-audit index build" in shown("finetune", name)
            assert "training examples 122" in shown("index", "build", name)
    return folder


@pytest.fixture
def project(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the finished project, as the current folder."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_training_examples_are_grouped_as_the_task_says(project: Path) -> None:
    labels = {name: {*InfluenceIndex.open(project / "index" / name).labels} for name in TASKS}

    assert labels == {"pairs": {"agree", "differ"}, "ratings": {None}, "spans": {"blame", "praise"}}


def test_validation_is_accuracy_for_labels_and_loss_for_all_else(project: Path) -> None:
    assert "of 40 held-out examples right" in shown("finetune", "pairs")
    assert "a mean loss of" in shown("finetune", "ratings")


@pytest.mark.parametrize("name", TASKS)
def test_an_input_is_explained_by_its_fields_whatever_the_task(project: Path, name: str) -> None:
    found = answer("explain", name, *one_input(name), "--top-k", "3")

    texts = [one["text"] for one in found["examples"]]
    field = next(iter(INPUTS[name]))
    known = [str(row[field]) for row in rows()[name]]
    assert texts
    assert all(any(text.startswith(one) for one in known) for text in texts)
    assert found["differences"]["base_measurement"] is not None


def test_an_explanation_shows_predictions_units_and_groups_in_the_tasks_own_words(project: Path) -> None:
    pairs, ratings, spans = (shown("explain", name, *one_input(name)) for name in TASKS)

    assert "input the film is superb the film is dull" in pairs
    assert "%)" in pairs.partition("base model")[0], "label and confidence"
    assert "label agree" in pairs
    assert '{"stars": ' in ratings
    assert "stars in the base model" not in ratings
    assert "raised the stars" in ratings
    assert "log-odds" not in ratings
    assert "probability" not in ratings
    assert '{"opinions": [' in spans
    assert "training text" in spans


def test_a_target_is_named_by_its_label_or_as_json(project: Path) -> None:
    differ = answer("explain", "pairs", *one_input("pairs"), "--target", "differ")
    same = answer("explain", "pairs", *one_input("pairs"), "--target", '{"label": "differ"}')
    span = answer("explain", "spans", *one_input("spans"), "--target", json.dumps(SPAN))

    assert differ["differences"]["target"] == same["differences"]["target"] == "differ"
    assert span["differences"]["target"] == {"opinions": [{"start": 12, "end": 18, "label": "praise"}]}
    assert '"start": 12' in shown("explain", "spans", *one_input("spans"), "--target", json.dumps(SPAN))
    assert "unknown label 'odd'; the labels are 'agree', 'differ'" in refused(
        "explain", "pairs", *one_input("pairs"), "--target", "odd"
    )
    assert "a target is a span" in refused("explain", "spans", *one_input("spans"), "--target", "praise")
    assert "is not JSON" in refused("explain", "spans", *one_input("spans"), "--target", '{"span": ')


def test_text_is_short_for_the_one_field_of_an_input_that_is_one_text(project: Path) -> None:
    by_text = answer("explain", "spans", "--text", "the film is superb")
    by_field = answer("explain", "spans", *one_input("spans"))

    assert by_text["prediction"] == by_field["prediction"]
    assert by_text["differences"]["measurement"] == pytest.approx(by_field["differences"]["measurement"])


@pytest.mark.parametrize("verb", [("explain",), ("measure", "--without", "top:1")])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("pairs", "--text", "fine"), "its fields are 'premise', 'hypothesis': say --input"),
        (("ratings", "--text", "fine"), "its fields are 'review', 'weight'"),
        (("pairs", "--text", "fine", *one_input("pairs")), "exclude each other; the fields of an input are 'premise'"),
        (("pairs", "--input", '{"premise": "fine"}'), "input has no 'hypothesis'; its fields are"),
        (("spans", "--input", '{"review": "fine", "age": 3}'), "input has no field 'age'; its fields are 'review'"),
        (("spans", "--input", '{"review": '), "is not JSON"),
        (("spans", "--input", "@nowhere.json"), "nowhere.json cannot be read"),
    ],
)
def test_an_input_that_cannot_be_used_is_a_usage_error_that_names_the_fields(
    project: Path, verb: tuple[str, ...], arguments: tuple[str, ...], message: str
) -> None:
    assert message in refused(*verb, *arguments)


def test_an_input_may_stand_in_a_file(project: Path) -> None:
    (project / "one.json").write_text(json.dumps(INPUTS["pairs"]))

    assert "the film is dull" in shown("explain", "pairs", "--input", "@one.json")


@pytest.mark.parametrize("name", TASKS)
def test_rows_of_a_file_are_explained_by_the_columns_of_the_tasks_fields(project: Path, name: str) -> None:
    some = [
        {**row, "target": own_span(row)} if name == "spans" and number else row
        for number, row in enumerate(rows()[name])
    ]
    (project / "some.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some[:5]))

    summary = answer("explain", name, "--input", "some.jsonl", "--out", "out.jsonl")

    lines = [json.loads(line) for line in (project / "out.jsonl").read_text().splitlines()]
    assert (summary["explained"], len(lines)) == (5, 5)
    assert summary["shared_examples"][0]["text"]
    targets = [line["differences"]["target"] for line in lines]
    if name == "pairs":
        assert targets == [row["relation"] for row in some[:5]]
    if name == "spans":
        assert all(one["opinions"][0]["label"] == "praise" for one in targets[1:])


def own_span(row: dict[str, Any]) -> dict[str, Any]:
    """The word of opinion in the row's own text, as praise."""
    (opinion,) = row["opinions"]
    return {"span": [opinion["start"], opinion["end"]], "label": "praise"}


def test_only_tasks_that_predict_a_label_can_be_wrong(project: Path) -> None:
    arguments = ("--out", "out.jsonl", "--only-wrong")

    found = answer("explain", "pairs", "--input", "pairs.jsonl", *arguments)
    message = refused("explain", "spans", "--input", "spans.jsonl", "--out", "others.jsonl", "--only-wrong")

    assert found["explained"] + found["skipped"] == 144
    assert "Spans predicts none" in message


def test_training_again_measures_the_tasks_own_target_in_its_own_unit(project: Path) -> None:
    pairs = answer("measure", "pairs", *one_input("pairs"), "--without", "top:3")["change"]
    ratings = answer("measure", "ratings", *one_input("ratings"), "--without", "top:3")["change"]
    table = shown("measure", "ratings", *one_input("ratings"), "--without", "top:3")
    target = ("--target", json.dumps(SPAN))
    spans = answer("measure", "spans", *one_input("spans"), *target, "--without", "group:label=praise")["change"]

    assert pairs["label_before"] in ("agree", "differ")
    assert 0 < pairs["probability_before"] < 1
    assert (ratings["probability_before"], ratings["label_before"], ratings["flipped"]) == (None, None, None)
    assert "stars: from" in table
    assert "%" not in table
    assert "log-odds" not in table
    assert spans["target"] == {"opinions": [{"start": 12, "end": 18, "label": "praise"}]}
    assert spans["measured"] != 0


def test_targets_are_changed_through_the_tasks_own_check_and_as_json_where_they_are_no_names(project: Path) -> None:
    to_pairs = ("measure", "pairs", *one_input("pairs"), "--relabel", "top:2", "--label")
    to_ratings = ("measure", "ratings", *one_input("ratings"), "--relabel", "top:2", "--label")

    assert answer(*to_ratings, "3.5")["changed_examples"] == 2
    assert "is of the kind 'number'; write it as JSON" in refused(*to_ratings, "many")
    assert "there is no relation 'odd'" in refused(*to_pairs, "odd")
    message = refused("measure", "pairs", *one_input("pairs"), "--edit", "r0", "--new-text", "fine")
    assert "no single input that can be written otherwise" in message


@pytest.mark.parametrize(("name", "signed"), [("pairs", True), ("spans", False)])
def test_an_evaluation_measures_every_model_on_one_target_and_signs_by_labels_only_where_there_are(
    project: Path, name: str, signed: bool
) -> None:
    found = answer("evaluate", name, *FEW, "--single", "2")

    methods = {row["method"] for row in found["rows"]}
    assert {"estimated", "gradient dot"} <= methods
    assert any("signed by label" in method for method in methods) is signed
    assert any(abs(value) > 0 for row in found["single"]["measured"] for value in row)
    assert (project / "state" / name / "evaluation" / "evaluation.png").is_file()


def test_errors_are_planted_only_in_targets_that_are_one_label(project: Path) -> None:
    assert "Ratings does not; evaluate without --planted" in refused("evaluate", "ratings", "--planted", "0.1")


def test_an_index_is_checked_on_what_each_query_predicts(project: Path) -> None:
    checked = answer("index", "check", "spans")

    assert checked["queries"] == 10
    assert checked["nonlinearity"] > 0, "the retrained models differ"
    assert "±" in shown("explain", "spans", *one_input("spans"))


@pytest.mark.parametrize(("name", "column"), [("pairs", "relation"), ("ratings", "stars"), ("spans", "opinions")])
def test_suspects_have_the_tasks_columns(project: Path, name: str, column: str) -> None:
    table = shown("suspects", name, "--top-k", "3", "--out", "suspects.csv")

    assert f"loss {column} training" in table
    with (project / "suspects.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    assert len(found) == 122
    known = {str(row["id"]): row for row in rows()[name]}
    first = known[found[0]["example_id"]]
    assert found[0][column] == (json.dumps(first[column]) if name == "spans" else str(first[column]))


def test_confidences_of_folds_need_labels(project: Path) -> None:
    assert "Ratings predicts no labels" in refused("suspects", "ratings", "--folds", "2")


def test_drift_is_watched_as_far_as_predictions_have_labels_and_confidences(project: Path) -> None:
    pairs = answer("reference", "build", "pairs")
    ratings = bento_audit("reference", "build", "ratings")
    spans = answer("reference", "build", "spans")

    assert {"prediction", "confidence"} <= set(pairs["signals"])
    assert pairs["outcomes"]["examples"] == 40
    assert "predicts no labels, so none are watched; what is: influence by source." in ratings.stderr
    assert [*spans["signals"]] == ["prediction"]
    assert spans["outcomes"] == {}


@pytest.mark.parametrize("name", TASKS)
def test_a_drift_report_shows_inputs_and_predictions_of_any_kind(project: Path, name: str) -> None:
    answer("reference", "build", name)

    found = answer("drift", "report", name, "--input", f"{name}.jsonl", "--explain", "20")

    assert (found["inputs_read"], found["inputs_explained"]) == (144, 20)
    assert (project / "drift.html").read_text().startswith("<!doctype html>")


@pytest.mark.parametrize("name", TASKS)
def test_doctor_finds_a_project_of_any_task_in_order(project: Path, name: str) -> None:
    findings = {one["what"]: one["state"] for one in answer("doctor", name)["findings"]}

    assert {findings[what] for what in ("config", "base model", "model", "data", "index")} == {"ok"}
