"""Promises of `bento-audit measure`: trains again with a change, says what it did, and never does work twice."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from audit_service.cli.group import main
from audit_service.config import load_config
from influence_engine.training import Run

TEXT = "the film is superb"


def bento_audit(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def answer(*arguments: str, config: str = "films") -> dict[str, Any]:
    result = bento_audit("measure", config, "--text", TEXT, *arguments, "--json")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_json_holds_what_was_predicted_and_what_was_measured(films: Path) -> None:
    found = answer("--without", "proponents:5", "--replay")

    change = found["change"]
    assert (found["kind"], found["changed_examples"], found["twin"]) == ("remove", 5, None)
    assert change["target"] == change["label_before"]
    assert set(change["predicted"]) == {"estimated", "replayed"}
    assert all(predicted < 0 for predicted in change["predicted"].values())
    assert change["measured"] == pytest.approx(change["after"] - change["before"])
    assert found["control_gap"] < 1e-3
    kept = sorted(films.rglob("retraining-*.safetensors"))
    assert len(kept) == 2, "with the change, and without"

    again = answer("--without", "proponents:5")
    assert again["change"]["measured"] == change["measured"]
    assert sorted(films.rglob("retraining-*.safetensors")) == kept


def test_once_the_index_is_checked_predictions_have_intervals(films: Path) -> None:
    assert answer("--without", "top:5")["predicted_error_90"] == {"estimated": None}
    config = films / "configs" / "films.yaml"
    written = yaml.safe_load(config.read_text())
    del written["data"]["validation"]["part"]  # all of them: as many as a check needs
    config.write_text(yaml.safe_dump(written))
    assert bento_audit("index", "check", "films").exit_code == 0
    assert answer("--without", "top:5")["predicted_error_90"]["estimated"] > 0
    shown = bento_audit("measure", "films", "--text", TEXT, "--without", "top:5").stdout
    assert "±" in shown
    assert "its 90% interval" in shown or "within its interval" in shown


def test_an_explanation_of_the_measured_tier_is_the_same_measurement(films: Path) -> None:
    result = bento_audit("explain", "films", "--text", TEXT, "--tier", "measured", "--top-k", "3", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["change"] == answer("--without", "top:3")["change"]
    refused = bento_audit("explain", "films", "--input", "train.csv", "--out", "x.jsonl", "--tier", "measured")
    assert (refused.exit_code, "goes with --text" in refused.stderr) == (2, True)


def test_a_relabelled_example_a_group_and_an_edited_one_are_named_by_word_or_id(films: Path) -> None:
    run = Run.open(films / "runs" / "films")
    label = answer("--without", "top:1")["change"]["label_before"]
    other = {"bad": "good", "good": "bad"}[label]
    group = answer("--without", f"group:label={label}")
    assert group["change"]["label_after"] == other
    assert group["change"]["flipped"] is True
    assert group["changed_examples"] > 20
    relabelled = answer("--relabel", f"group:label={label}", "--label", other)
    assert (relabelled["kind"], relabelled["change"]["label_after"]) == ("relabel", other)
    edited = answer("--edit", run.example_ids[0], "--new-text", "a tedious script after all")
    assert (edited["kind"], edited["changed_examples"]) == ("edit", 1)
    by_handle = answer("--edit", edited["examples"][0]["example_handle"], "--new-text", "a tedious script after all")
    assert by_handle["change"] == edited["change"]


def test_the_table_says_what_changed_and_the_dry_run_what_it_will_take(films: Path) -> None:
    result = bento_audit("measure", "films", "--text", TEXT, "--without", "top:3")
    assert result.exit_code == 0, result.output
    shown = " ".join(result.stdout.split())
    for part in (TEXT, "3 of", "training examples left out", "measured", "predicted (estimated)", "log-odds", "label"):
        assert part in shown
    dry = answer("--without", "top:3", "--dry-run", "--replay")
    assert {"steps", "seconds", "control_seconds", "replay_seconds", "memory_bytes", "disk_bytes"} <= set(dry)
    assert dry["seconds"] > 0
    assert "about" in bento_audit("measure", "films", "--text", TEXT, "--without", "top:3", "--dry-run").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--without", "best:3"], "'best:3' selects no training examples; write top:10"),
        (["--without", "top:0"], "1 to 100"),
        (["--without", "ids:nobody"], "no example 'nobody'"),
        (["--without", "group:label=fine"], "no training example has the label 'fine'; there is bad, good"),
        (["--relabel", "top:3", "--label", "fine"], "unknown label 'fine'"),
        (["--relabel", "top:3"], "--relabel goes with --label"),
        (["--without", "top:3", "--edit", "x", "--new-text", "y"], "exactly one of --without, --relabel and --edit"),
        ([], "exactly one of --without, --relabel and --edit"),
        (["--without", "top:3", "--target", "fine"], "unknown label 'fine'"),
    ],
)
def test_what_cannot_be_measured_is_a_usage_error_that_says_what_would_be_right(
    films: Path, arguments: list[str], message: str
) -> None:
    result = bento_audit("measure", "films", "--text", TEXT, *arguments)

    assert result.exit_code == 2, result.output
    assert message in " ".join(result.stderr.split())


def test_what_needs_more_memory_than_it_may_have_is_refused_before_it_trains(
    films: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENTO_AUDIT_JOBS__MEMORY_BYTES", "1000000")
    result = bento_audit("measure", "films", "--text", TEXT, "--without", "top:3")
    assert result.exit_code == 1
    assert "training again needs about" in result.stderr
    assert "there are 1.0 MB" in " ".join(result.stderr.split())
    assert not list(films.rglob("retraining-*"))


def test_explanations_of_a_recorded_run_say_that_its_base_model_had_no_head_of_its_own(films: Path) -> None:
    result = bento_audit("explain", "films", "--text", TEXT, "--json")
    assert json.loads(result.stdout)["differences"]["base_head"] == "random"


@pytest.fixture(scope="module")
def adopted_project(adopted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("twin")
    shutil.copytree(adopted, folder, dirs_exist_ok=True)
    held_out = (folder / "train.csv").read_text().splitlines()
    (folder / "held_out.csv").write_text("\n".join([held_out[0], *held_out[1:41]]))
    (folder / "train.csv").write_text("\n".join([held_out[0], *held_out[41:]]))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        result = bento_audit("init", "--model", "support", "--data", "train.csv", "--base", "base")
        assert result.exit_code == 0, result.output
        file = folder / "configs" / "support.yaml"
        config = yaml.safe_load(file.read_text())
        config["data"]["validation"] = {**config["data"]["train"], "csv": "held_out.csv"}
        config["finetune"] = {"epochs": 6, "batch_size": 16, "learning_rate": 3e-3}
        file.write_text(yaml.safe_dump(config))
        result = bento_audit("index", "build", "support")
        assert result.exit_code == 0, result.output
    return folder


def test_an_adopted_model_is_measured_on_a_surrogate_whose_agreement_every_answer_states(
    adopted_project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(adopted_project)
    explained = bento_audit("explain", "support", "--text", TEXT, "--json")
    assert explained.exit_code == 0, explained.output
    without = bento_audit("measure", "support", "--text", TEXT, "--without", "top:3")
    assert without.exit_code == 1
    assert "trained elsewhere, without a record" in without.stderr
    assert "bento-audit finetune support --twin" in " ".join(without.stderr.split())

    made = bento_audit("finetune", "support", "--twin", "--json")
    assert made.exit_code == 0, made.output
    agreement = json.loads(made.stdout)["agreement"]
    assert agreement["examples"] == 40
    assert agreement["labels"] > 0.8
    assert agreement["logits"] > 0.5
    assert -1 <= agreement["gradients"] <= 1
    assert load_config("support").surrogate_folder == adopted_project / "runs" / "support-twin"

    found = answer("--without", "group:label=good", config="support")
    assert found["twin"] == agreement
    shown = bento_audit("measure", "support", "--text", TEXT, "--without", "group:label=good")
    assert f"both give the same label for {agreement['labels']:.1%}" in " ".join(shown.stdout.split())
    assert "WARNING" not in shown.stdout
    again = json.loads(bento_audit("finetune", "support", "--twin", "--json").stdout)
    assert again["agreement"] == agreement


def test_the_index_of_an_adopted_model_is_checked_and_evaluated_on_its_surrogate_and_says_so(
    adopted_project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(adopted_project)
    assert bento_audit("finetune", "support", "--twin").exit_code == 0

    checked = bento_audit("index", "check", "support", "--json")
    explained = bento_audit("explain", "support", "--text", TEXT, "--json")
    planned = bento_audit("evaluate", "support", "--queries", "8", "--tuning", "2", "--subsets", "2", "--dry-run")
    found = bento_audit("evaluate", "support", "--queries", "8", "--tuning", "2", "--subsets", "2", "--json")

    assert checked.exit_code == 0, checked.output
    assert "both give the same label for" in json.loads(checked.stdout)["surrogate"]
    answered = json.loads(explained.stdout)
    assert answered["examples"][0]["error_90"] > 0
    assert any("training a surrogate again, not this model" in one for one in answered["quality"]["warnings"])
    assert planned.exit_code == 0, planned.output
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout)["surrogate"]["labels"] > 0.8

    replayed = bento_audit("index", "build", "support", "--directions", "2")
    assert replayed.exit_code == 1
    said = " ".join(replayed.stderr.split())
    assert "Its surrogate takes its place for `measure`, `index check` and `evaluate` alone" in said
    assert "--twin" not in said, "what has been done already is not proposed again"


def test_a_surrogate_that_has_learnt_nothing_is_named_unusable_and_no_basis_for_a_check(
    adopted_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(adopted_project, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "configs" / "support.yaml"
    config = yaml.safe_load(file.read_text())
    config["finetune"] = {"epochs": 1, "batch_size": 64, "learning_rate": 1e-9}
    file.write_text(yaml.safe_dump(config))
    (tmp_path / "support" / "trainer_state.json").write_text(
        json.dumps({"num_train_epochs": 12, "log_history": [{"learning_rate": 0.003}, {"learning_rate": 0.001}]})
    )

    made = bento_audit("finetune", "support", "--twin", "--restart")
    measured = bento_audit("measure", "support", "--text", TEXT, "--without", "top:3")
    checked = bento_audit("index", "check", "support")

    said = " ".join(made.stdout.split())
    assert "UNUSABLE" in said
    assert "finetune.epochs (now 1), finetune.learning_rate (now 1e-09)" in said
    assert "{epochs: 12, learning_rate: 0.003}" in said
    assert "bento-audit measure" not in said
    assert measured.stdout.lstrip().startswith("WARNING")
    assert checked.exit_code == 1
    assert "agrees too little with the served model to check it" in " ".join(checked.stderr.split())

    agreement = tmp_path / "runs" / "support-twin" / "agreement.json"
    agreement.write_text(json.dumps({**json.loads(agreement.read_text()), "served": "another digest"}))
    refused = bento_audit("measure", "support", "--text", TEXT, "--without", "top:3")
    assert refused.exit_code == 1
    assert "is of another model than the served one" in " ".join(refused.stderr.split())


def test_a_recorded_model_needs_no_surrogate(films: Path) -> None:
    result = bento_audit("finetune", "films", "--twin")
    assert result.exit_code == 2
    assert "only a model that was trained elsewhere needs a surrogate" in result.stderr
