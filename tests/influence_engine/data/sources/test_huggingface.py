from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from influence_engine.data import DataSettings, load_examples
from influence_engine.errors import DataError
from influence_engine.tasks import TextClassification

datasets: Any = pytest.importorskip("datasets")

ROWS = {"text": ["good", "bad"], "label": [1, 0]}


def labelled() -> Any:
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["negative", "positive"])}
    )
    return datasets.Dataset.from_dict(ROWS, features=features)


def test_class_labels_arrive_by_name(tmp_path: Path, task: TextClassification) -> None:
    labelled().save_to_disk(str(tmp_path / "reviews"))

    loaded = load_examples(DataSettings(dataset="reviews"), task, tmp_path)

    assert [(example["text"], example["label"]) for example in loaded.examples] == [
        ("good", "positive"),
        ("bad", "negative"),
    ]
    assert loaded.examples[0]["source"] == "reviews"


def test_numbers_without_names_are_mapped_by_labels(tmp_path: Path, task: TextClassification) -> None:
    datasets.Dataset.from_dict(ROWS).save_to_disk(str(tmp_path / "reviews"))

    loaded = load_examples(DataSettings(dataset="reviews", labels={0: "negative", 1: "positive"}), task, tmp_path)

    assert [example["label"] for example in loaded.examples] == ["positive", "negative"]


def test_a_class_label_that_was_left_blank_is_a_bad_row(tmp_path: Path, task: TextClassification) -> None:
    blank = datasets.Dataset.from_dict({"text": ["good", "bad"], "label": [1, -1]}, features=labelled().features)
    blank.save_to_disk(str(tmp_path / "reviews"))

    with pytest.raises(DataError, match="row 2: 'label' is missing"):
        load_examples(DataSettings(dataset="reviews"), task, tmp_path)


def test_lists_of_class_labels_arrive_by_name(tmp_path: Path) -> None:
    tags = datasets.ClassLabel(names=["O", "B-place"])
    features = datasets.Features({"tokens": [datasets.Value("string")], "tags": datasets.Sequence(tags)})
    rows = {"tokens": [["in", "Rome"]], "tags": [[0, 1]]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path / "entities"))

    settings = DataSettings(dataset="entities", columns={"tokens": "tokens", "tags": "tags"})
    loaded = load_examples(settings, object(), tmp_path)

    assert loaded.examples[0]["tags"] == ["O", "B-place"]


def test_a_split_is_chosen_by_name_and_an_unknown_one_refused(tmp_path: Path, task: TextClassification) -> None:
    splits = datasets.DatasetDict({"train": labelled(), "test": labelled().select([0])})
    splits.save_to_disk(str(tmp_path / "reviews"))

    assert len(load_examples(DataSettings(dataset="reviews", split="test"), task, tmp_path)) == 1
    assert len(load_examples(DataSettings(dataset="reviews"), task, tmp_path)) == 2
    with pytest.raises(DataError, match=r"has no split 'tets'; it has 'train', 'test'\. Did you mean 'test'\?"):
        load_examples(DataSettings(dataset="reviews", split="tets"), task, tmp_path)


def test_a_split_of_one_data_set_is_refused(tmp_path: Path, task: TextClassification) -> None:
    labelled().save_to_disk(str(tmp_path / "reviews"))

    with pytest.raises(DataError, match="is one data set without splits"):
        load_examples(DataSettings(dataset="reviews", split="train"), task, tmp_path)


def test_a_folder_of_something_else_and_a_missing_one_are_refused(tmp_path: Path, task: TextClassification) -> None:
    (tmp_path / "other").mkdir()

    with pytest.raises(DataError, match="is not a folder of save_to_disk"):
        load_examples(DataSettings(dataset="other"), task, tmp_path)
    with pytest.raises(DataError, match=r"there is no folder .*othre\. Did you mean 'other'\?"):
        load_examples(DataSettings(dataset="othre"), task, tmp_path)


def run(script: str, **environment: str) -> str:
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


HUB = """
from influence_engine.data import DataSettings, load_examples
from influence_engine.errors import DataError
try:
    load_examples(DataSettings(hub="nobody/nothing"), object())
except DataError as error:
    print(error)
"""


def test_a_hub_that_cannot_be_reached_says_what_to_do(tmp_path: Path) -> None:
    said = run(HUB, HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path))

    assert said.startswith("hub: the data set 'nobody/nothing' cannot be loaded:")
    assert "name the folder as `dataset`" in said


def test_without_the_library_the_message_says_which_extra_brings_it() -> None:
    # None in sys.modules is how Python itself marks a module that must not be found.
    said = run(f"import sys; sys.modules['datasets'] = None\n{HUB}")

    assert "pip install 'bento-audit[data]'" in said
