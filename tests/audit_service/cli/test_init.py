"""A checkpoint that the plain Trainer made, with dropout and bf16 and no record, is adopted and explained."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from audit_service.artifacts.trainer_state import recorded_settings
from audit_service.cli.group import main
from audit_service.config import load_config

SERVICE = """
import bentoml


@bentoml.service
class Support:
    @bentoml.api
    def predict(self, text: str) -> dict[str, float | str]:
        return {"label": "good", "confidence": 0.9}
"""


@pytest.fixture
def project(adopted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project's folder with the adopted model and its data in it, as the current folder."""
    shutil.copytree(adopted, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def bento_audit(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def test_init_writes_a_config_that_loads_and_says_which_tiers_there_are(project: Path) -> None:
    result = bento_audit("init", "--model", "support", "--data", "train.csv", "--base", "base", "--json")

    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    assert answer["tiers"]["estimated"].startswith("yes")
    assert answer["tiers"]["replayed"].startswith("no: the training was not recorded")
    config = load_config("support")
    assert config.task.labels == ["bad", "good"]
    assert config.model_folder() == project / "support"
    assert config.base_model_location() == str(project / "base")
    assert config.data.train.columns == {"text": "sentence", "label": "sentiment"}
    assert config.data.train.labels == {"0": "bad", "1": "good"}


def test_the_adopted_model_is_indexed_and_explained_by_the_command_line(project: Path) -> None:
    assert bento_audit("init", "--model", "support", "--data", "train.csv", "--base", "base").exit_code == 0

    built = bento_audit("index", "build", "support", "--json")
    explained = bento_audit("explain", "support", "--text", "the cast is superb", "--top-k", "5", "--json")

    assert built.exit_code == 0, built.output
    assert json.loads(built.stdout)["rows"] == 144
    assert explained.exit_code == 0, explained.output
    answer = json.loads(explained.stdout)
    assert answer["prediction"]["label"] == "good"
    assert answer["differences"]["base_prediction"] is not None
    assert {example["tier"] for example in answer["examples"]} == {"estimated"}
    assert answer["differences"]["base_head"] == "random"
    assert any("not known whether the input is like" in warning for warning in answer["quality"]["warnings"])
    long = bento_audit("explain", "support", "--text", "superb " * 80, "--top-k", "1").stdout
    assert "only the first 64 of 82 tokens were read" in " ".join(long.split())
    assert "by a head of random weights" in " ".join(long.split())
    proponents = [example for example in answer["examples"] if example["polarity"] == "proponent"]
    assert proponents
    assert {example["label"] for example in proponents} == {"good"}

    question = ("--text", "the cast is superb", "--top-k", "5", "--tier", "refined", "--json")
    refined = json.loads(bento_audit("explain", "support", *question).stdout)

    assert {example["tier"] for example in refined["examples"]} == {"refined"}
    assert refined["quality"]["refinement"]["agreement_with_estimated"] > 0.9
    assert refined["quality"]["refinement"]["last_change"] <= 0.01


def test_the_adopted_model_is_served_by_the_service_that_init_writes(project: Path) -> None:
    assert bento_audit("init", "--model", "support", "--data", "train.csv").exit_code == 0

    source = (project / "bentos" / "support" / "service.py").read_text()
    bentofile = yaml.safe_load((project / "bentos" / "support" / "bentofile.yaml").read_text())

    assert 'class Support(AuditMixin, config="support"):' in source
    assert bentofile["service"] == "bentos.support.service:Support"


def test_the_lines_for_a_service_that_exists_are_a_patch_that_applies(project: Path) -> None:
    (project / "service.py").write_text(SERVICE)

    result = bento_audit("init", "--model", "support", "--data", "train.csv", "--service", "service.py", "--json")

    assert result.exit_code == 0, result.output
    assert not (project / "bentos").exists()
    diff = json.loads(result.stdout)["service_diff"]
    subprocess.run(["git", "apply", "-p0", "-"], input=diff, text=True, check=True, cwd=project)
    source = (project / "service.py").read_text()
    assert 'class Support(AuditMixin, config="support"):' in source
    assert '    @audited(label="label", confidence="confidence")\n    def predict' in source


def test_a_config_that_exists_is_not_replaced_unasked(project: Path) -> None:
    assert bento_audit("init", "--model", "support", "--data", "train.csv").exit_code == 0
    config = project / "configs" / "support.yaml"
    config.write_text(config.read_text() + "# my own line\n")

    refused = bento_audit("init", "--model", "support", "--data", "train.csv")
    replaced = bento_audit("init", "--model", "support", "--data", "train.csv", "--overwrite")

    assert refused.exit_code == 2
    assert "--overwrite" in refused.stderr
    assert replaced.exit_code == 0
    assert "my own line" not in config.read_text()


@pytest.mark.parametrize(
    ("damage", "code", "message"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), 1, "safetensors"),
        (lambda folder: (folder / "config.json").unlink(), 1, "has no config.json"),
        (lambda folder: shutil.rmtree(folder), 1, "is not a folder"),
        (
            lambda folder: (folder / "config.json").write_text(
                (folder / "config.json").read_text().replace("BertForSequenceClassification", "BertForMaskedLM")
            ),
            1,
            "holds BertForMaskedLM",
        ),
    ],
    ids=["no weights", "no config", "no folder", "another kind"],
)
def test_a_checkpoint_that_cannot_be_adopted_is_refused_with_the_reason(
    project: Path, damage: object, code: int, message: str
) -> None:
    assert callable(damage)
    damage(project / "support")

    result = bento_audit("init", "--model", "support", "--data", "train.csv")

    assert result.exit_code == code
    assert message in result.stderr
    assert not (project / "configs").exists()


def test_a_label_that_the_config_calls_otherwise_than_the_checkpoint_is_one_line_and_named(project: Path) -> None:
    shown = bento_audit("init", "--model", "support", "--data", "train.csv").stdout
    assert shown.count("the training was not recorded") == 1, "what holds for two tiers is said once"
    config = project / "configs" / "support.yaml"
    written = yaml.safe_load(config.read_text())
    written["task"]["labels"] = ["bad", "god"]
    config.write_text(yaml.safe_dump(written))

    refused = bento_audit("index", "build", "support")

    assert refused.exit_code == 1
    said = " ".join(refused.stderr.split())
    assert "72 lines (3, 5, 7 ...): unknown label 'good'" in said
    assert said.count("unknown label") == 1
    assert "Did you mean 'god'?" in said
    assert "The checkpoint calls its labels 'bad', 'good', the config 'bad', 'god': see task.labels" in said


def test_what_the_trainer_left_of_its_settings_is_proposed_for_a_surrogate(project: Path) -> None:
    assert "surrogate" not in bento_audit("init", "--model", "support", "--data", "train.csv").stdout.split("tier")[0]
    state = {
        "num_train_epochs": 12,
        "train_batch_size": 16,
        "log_history": [{"loss": 0.7, "learning_rate": 0.003}, {"learning_rate": 0.001}, {"eval_loss": 0.5}],
    }
    (project / "support" / "trainer_state.json").write_text(json.dumps(state))

    result = bento_audit("init", "--model", "support", "--data", "train.csv", "--overwrite")

    assert "{epochs: 12, learning_rate: 0.003, batch_size: 16}" in " ".join(result.stdout.split())
    settings = load_config("support").finetune
    assert (settings.epochs, settings.learning_rate, settings.batch_size) == (12, 0.003, 16)


@pytest.mark.parametrize("content", ["{", "[]", '{"num_train_epochs": "many"}', '{"log_history": [3]}'])
def test_a_trainer_state_that_cannot_be_read_proposes_nothing(tmp_path: Path, content: str) -> None:
    (tmp_path / "trainer_state.json").write_text(content)

    assert recorded_settings(tmp_path) == {}


def test_labels_without_names_get_names_from_the_command_line(project: Path) -> None:
    result = bento_audit("init", "--model", "support", "--data", "train.csv", "--labels", "negative,positive")

    assert result.exit_code == 0, result.output
    assert load_config("support").data.train.labels == {"0": "negative", "1": "positive"}
