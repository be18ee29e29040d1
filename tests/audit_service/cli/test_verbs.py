"""The way through the command line with a small model: fine-tune, index, inspect, verify, explain, doctor."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from audit_service.cli.group import main
from influence_engine.index.index import current_version

CONFIG = """
task: {type: text_classification, labels: [bad, good]}
base_model: {path: base}
data:
  train: {csv: train.csv, columns: {id: key, text: sentence, label: sentiment}, labels: {0: bad, 1: good}}
  validation: {csv: train.csv, columns: {id: key, text: sentence, label: sentiment}, labels: {0: bad, 1: good},
    limit: 20}
finetune: {epochs: 6, batch_size: 16, learning_rate: 3e-3, warmup_ratio: 0}
profiles:
  short: {name: films-short, finetune: {epochs: 1}}
"""


def bento_audit(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


@pytest.fixture(scope="module")
def finished(adopted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project that has been through finetune and index build."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copytree(adopted / "base", folder / "base")
    shutil.copy(adopted / "train.csv", folder)
    (folder / "configs").mkdir()
    (folder / "configs" / "films.yaml").write_text(CONFIG)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for arguments in (["finetune", "films"], ["index", "build", "films"]):
            result = bento_audit(*arguments)
            assert result.exit_code == 0, result.output
    return folder


@pytest.fixture
def project(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the finished project, as the current folder."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_dry_run_of_finetune_predicts_and_writes_nothing(project: Path) -> None:
    shutil.rmtree(project / "runs")

    result = bento_audit("finetune", "films", "--dry-run", "--json")

    assert result.exit_code == 0, result.output
    plan = json.loads(result.stdout)
    assert (plan["examples"], plan["steps"]) == (144, 54)
    assert plan["seconds"] > 0
    assert plan["memory_bytes"] > 0
    assert not (project / "runs").exists()


def test_the_disk_that_a_dry_run_predicts_is_what_the_run_takes(project: Path) -> None:
    plan = json.loads(bento_audit("finetune", "films", "--dry-run", "--json").stdout)

    taken = sum(file.stat().st_size for file in (project / "runs" / "films").rglob("*") if file.is_file())

    assert plan["disk_bytes"] == pytest.approx(taken, rel=0.25)


def test_finetune_of_a_finished_run_answers_from_the_record(project: Path) -> None:
    result = bento_audit("finetune", "films", "--json")

    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    assert answer["steps"] == 54
    assert answer["replayable"] is True
    assert answer["validation"]["accuracy"] > 0.9


def test_finetune_never_replaces_another_run_unasked(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENTO_AUDIT_FINETUNE__EPOCHS", "1")

    refused = bento_audit("finetune", "films")
    restarted = bento_audit("finetune", "films", "--restart", "--json")

    assert refused.exit_code == 1
    assert "settings.epochs: 6 in the run, 1 now" in refused.stderr
    assert "--restart" in refused.stderr
    assert json.loads(restarted.stdout)["steps"] == 9


def test_a_dry_run_of_index_build_predicts_and_writes_nothing(project: Path) -> None:
    shutil.rmtree(project / "index")

    result = bento_audit("index", "build", "films", "--dry-run", "--json")

    assert result.exit_code == 0, result.output
    plan = json.loads(result.stdout)
    assert plan["examples"] == 144
    assert min(plan["seconds"], plan["disk_bytes"], plan["memory_bytes"]) > 0
    assert not (project / "index").exists()


def test_index_build_without_a_model_says_which_command_comes_first(project: Path) -> None:
    shutil.rmtree(project / "runs")

    result = bento_audit("index", "build", "films")

    assert result.exit_code == 1
    assert "bento-audit finetune films" in result.stderr


def test_a_profile_with_a_name_of_its_own_is_named_in_what_comes_next(project: Path) -> None:
    missing = bento_audit("index", "build", "films", "--profile", "short")
    tuned = bento_audit("finetune", "films", "--profile", "short")

    assert "bento-audit finetune films --profile short" in missing.stderr
    assert "bento-audit index build films --profile short" in tuned.stdout
    assert (project / "runs" / "films-short" / "manifest.json").is_file()


def test_a_full_disk_is_one_message_and_the_same_command_goes_on_when_there_is_room(
    project: Path, files_up_to: Callable[[int], AbstractContextManager[None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = current_version(project / "index" / "films")
    monkeypatch.setenv("BENTO_AUDIT_INDEX__SEED", "1")

    with files_up_to(10_000):
        refused = bento_audit("index", "build", "films")

    assert refused.exit_code == 1
    assert "Error: the disk took no more while building the index (File too large)" in refused.stderr
    assert "; make room, or build a smaller one: " in refused.stderr
    assert "Traceback" not in refused.stderr
    assert current_version(project / "index" / "films") == before
    assert bento_audit("index", "build", "films").exit_code == 0
    assert current_version(project / "index" / "films") != before


def test_inspect_says_what_the_index_was_built_from(project: Path) -> None:
    about = json.loads(bento_audit("index", "inspect", "films", "--json").stdout)

    assert about["rows"] == 144
    assert about["metric"] == "adam"
    assert about["approximation"] == "unrolled"
    assert about["disk_bytes"] > 0
    shown = " ".join(bento_audit("index", "inspect", "films").stdout.split())
    assert f"kept of held-out gradients p01 {about['retained']['p01']:.1%}, " in shown


def test_verify_exits_with_0_for_an_unchanged_index(project: Path) -> None:
    result = bento_audit("index", "verify", "films", "--json")

    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["ok"] is True


@pytest.mark.parametrize("as_json", [True, False], ids=["json", "text"])
def test_verify_exits_with_1_and_names_the_file_that_has_changed(project: Path, as_json: bool) -> None:
    folder = project / "index" / "films" / "versions" / current_version(project / "index" / "films")
    file = folder / "encoder.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)

    result = bento_audit("index", "verify", "films", *(["--json"] if as_json else []))

    assert result.exit_code == 1
    message = json.loads(result.stdout)["error"]["message"] if as_json else result.stderr
    assert "encoder.safetensors" in message.replace("\n", "")


def test_explain_shows_prediction_examples_modules_and_quality(project: Path) -> None:
    result = bento_audit("explain", "films", "--text", "the cast is superb")

    assert result.exit_code == 0, result.output
    for part in ("good (", "base model", "proponents", "log-odds", "of all influence", "ms"):
        assert part in result.stdout


def test_explain_for_another_label_turns_supporters_round(project: Path) -> None:
    def influences(target: str) -> dict[str, float]:
        arguments = ("--text", "the cast is superb", "--target", target, "--top-k", "5", "--json")
        examples = json.loads(bento_audit("explain", "films", *arguments).stdout)["examples"]
        return {example["example_handle"]: example["influence"] for example in examples}

    good, bad = influences("good"), influences("bad")

    assert good
    assert bad == pytest.approx({handle: -influence for handle, influence in good.items()}, rel=1e-3)


def test_influence_is_summed_by_the_columns_asked_for(project: Path) -> None:
    text = ("--text", "the cast is superb")

    answer = json.loads(bento_audit("explain", "films", *text, "--group-by", "label", "--json").stdout)
    shown = bento_audit("explain", "films", *text, "--group-by", "label")

    assert {(group["by"], group["group"]) for group in answer["groups"]} == {("label", "good"), ("label", "bad")}
    assert sum(group["examples"] for group in answer["groups"]) == 144
    assert sum(group["share"] for group in answer["groups"]) == pytest.approx(1)
    assert "label good" in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--text", ""), "empty"),
        (("--text", "fine", "--group-by", "colour"), "cannot be grouped by 'colour'; they have label, source,"),
        (("--text", "fine", "--target", "awful"), "unknown label 'awful'"),
        (("--text", "fine", "--top-k", "0"), "0 is not in the range"),
        (("--text", "fine", "--top-k", "ten"), "'ten' is not a valid integer"),
        (("--text", "fine", "--polarity", "up"), "'up' is not one of"),
        ((), "say what to explain: --text TEXT or --image FILE, or --input FILE"),
    ],
)
def test_a_question_that_cannot_be_asked_is_a_usage_error(
    project: Path, arguments: tuple[str, ...], message: str
) -> None:
    result = bento_audit("explain", "films", *arguments)

    assert result.exit_code == 2
    assert message in result.stderr.replace("\n", " ")


def test_explain_before_anything_is_built_says_which_command_comes_first(project: Path) -> None:
    shutil.copy(project / "configs" / "films.yaml", project / "configs" / "plays.yaml")

    result = bento_audit("explain", "plays", "--text", "fine")

    assert result.exit_code == 1
    assert "bento-audit finetune plays" in result.stderr.replace("\n", "")


def test_the_environment_names_the_config_where_the_command_line_does_not(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENTO_AUDIT_CONFIG", "films")

    assert json.loads(bento_audit("index", "inspect", "--json").stdout)["rows"] == 144


def states(result: Result) -> dict[str, str]:
    return {finding["what"]: finding["state"] for finding in json.loads(result.stdout)["findings"]}


def test_doctor_finds_a_finished_project_in_order(project: Path) -> None:
    result = bento_audit("doctor", "films", "--json")

    assert result.exit_code == 0, result.output
    found = states(result)
    assert {found[what] for what in ("config", "base model", "model", "data", "index", "export", "state")} == {"ok"}
    assert found["packages"] == "ok"


def test_what_has_only_not_been_made_yet_is_missing_and_no_failure(project: Path) -> None:
    for folder in ("runs", "index", "models"):
        shutil.rmtree(project / folder)

    result = bento_audit("doctor", "films", "--json")

    assert result.exit_code == 0, result.output
    found = states(result)
    assert {found[what] for what in ("model", "index", "export")} == {"missing"}
    assert "bento-audit finetune films" in result.stdout


@pytest.mark.parametrize(
    ("file", "what"),
    [("runs/films/steps.safetensors", "model"), ("models/films/model.onnx", "export"), ("train.csv", "data")],
)
def test_doctor_exits_with_1_where_a_file_has_been_damaged(project: Path, file: str, what: str) -> None:
    (project / file).write_bytes(b"damaged")

    result = bento_audit("doctor", "films", "--json")

    assert result.exit_code == 1
    assert states(result)[what] == "broken"


def test_doctor_reports_a_config_with_an_unknown_key_as_broken(project: Path) -> None:
    config = project / "configs" / "films.yaml"
    config.write_text(config.read_text() + "serv: {}\n")

    result = bento_audit("doctor", "films", "--json")

    assert result.exit_code == 1
    assert states(result)["config"] == "broken"


def test_doctor_without_a_config_looks_at_the_machine_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    result = bento_audit("doctor", "--json")

    assert result.exit_code == 0, result.output
    assert states(result)["config"] == "note"


def test_directions_and_the_check_are_planned_made_shown_and_kept(project: Path) -> None:
    config = project / "configs" / "films.yaml"
    config.write_text(config.read_text().replace("limit: 20", "limit: 40"))

    planned = json.loads(bento_audit("index", "build", "films", "--directions", "8", "--dry-run", "--json").stdout)
    assert planned["replay"]["directions"] == 8
    assert planned["replay"]["seconds"] > 0

    built = json.loads(bento_audit("index", "build", "films", "--directions", "8", "--json").stdout)
    assert built["tiers"]["replayed"] == "available (8 directions)"
    assert built["calibration"] is None

    checked = json.loads(bento_audit("index", "check", "films", "--json").stdout)
    assert checked["queries"] == 10
    assert set(checked["tiers"]) == {"estimated", "replayed"}
    again = bento_audit("index", "check", "films")
    assert "replayed, checked" in again.stdout
    assert "nonlinearity" in bento_audit("index", "inspect", "films").stdout

    answer = json.loads(bento_audit("explain", "films", "--text", "a good film", "--json").stdout)
    assert {example["tier"] for example in answer["examples"]} == {"replayed"}
    assert all(example["error_90"] > 0 for example in answer["examples"])


def test_a_check_without_enough_held_out_examples_says_how_many_there_must_be(project: Path) -> None:
    result = bento_audit("index", "check", "films")
    assert result.exit_code != 0
    assert "needs at least 32 labelled held-out examples" in result.output


def test_planted_label_errors_are_counted_by_every_ranking(project: Path) -> None:
    result = bento_audit("evaluate", "films", "--planted", "0.1")
    assert result.exit_code == 0, result.output
    assert "14 of 144 labels are wrong on purpose" in result.stdout
    assert "self influence" in result.stdout
    answer = json.loads(bento_audit("evaluate", "films", "--planted", "0.1", "--json").stdout)
    assert set(answer["recall"]) == {"harm", "loss", "self_influence"}
    assert max(recall["0.3"] for recall in answer["recall"].values()) > 0.5
    inspected = json.loads(bento_audit("index", "inspect", "films", "--json").stdout)
    assert inspected["rows"] == 144
    assert not (project / "state" / "films" / "evaluation" / "evaluation.json").exists()
