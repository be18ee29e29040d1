"""Entities of a text: which words they are, what is explained of them, and what cannot be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from influence_engine.errors import DataError, InputError, SettingsError
from influence_engine.tasks import Part, TokenClassification, aim, choose_targets, group_of, projection_of, targets_of
from influence_engine.tasks.token_classification import IGNORED, NO_TARGET
from tests.tasks.toys.entities import piece_tokenizer

TYPES = ["blame", "place"]
TEXT = "the slowly dull film of New York"
"""Tokens: ``[CLS] the slow ##ly dull film of new york [SEP]``."""


@pytest.fixture(scope="module")
def task() -> TokenClassification:
    return TokenClassification(piece_tokenizer(), TYPES, max_length=12)


def entity(start: int, end: int, label: str) -> dict[str, Any]:
    return {"start": start, "end": end, "label": label}


def outputs_for(task: TokenClassification, tags: list[str], *, sure: float = 8.0) -> Tensor:
    """Logits ``[1, T, C]`` of these tags, one a token."""
    numbers = torch.tensor([task.tags.index(tag) for tag in tags])
    return torch.nn.functional.one_hot(numbers, len(task.tags)).float().unsqueeze(0) * sure


def predicted(task: TokenClassification, tags: list[str], text: str = TEXT) -> list[dict[str, Any]]:
    (prediction,) = task.predictions(outputs_for(task, tags), task.collate([{"text": text}]))
    found: list[dict[str, Any]] = prediction["entities"]
    return found


OUT = ["O"] * 10


def tagged(**tags: str) -> list[str]:
    """Tags of the tokens of ``TEXT``: ``t2="B-blame"`` is that of token 2."""
    found = list(OUT)
    for token, tag in tags.items():
        found[int(token[1:])] = tag
    return found


def test_the_first_piece_of_a_word_carries_its_tag_and_no_other_token_any(task: TokenClassification) -> None:
    entities = [entity(4, 15, "blame"), entity(24, 32, "place")]
    batch = task.collate([{"text": TEXT, "entities": entities}, {"text": "the film"}])
    named = [task.tags[number] if number >= 0 else number for number in batch["labels"][0].tolist()]
    assert named == [IGNORED, "O", "B-blame", IGNORED, "I-blame", "O", "O", "B-place", "I-place", IGNORED]
    assert batch["labels"][1].tolist()[:4] == [IGNORED, NO_TARGET, NO_TARGET, IGNORED]
    assert batch["mentions"][0].tolist() == [0, 0, 1, 0, 1, 0, 0, 2, 2, 0]
    assert task.parts({"text": TEXT, "entities": entities})[1:] == [
        Part("text", 4, 15, "blame"),
        Part("text", 24, 32, "place"),
    ]


def test_padding_on_the_left_changes_no_word(task: TokenClassification) -> None:
    left = piece_tokenizer()
    left.padding_side = "left"
    other = TokenClassification(left, TYPES, max_length=12)
    examples = [{"text": TEXT, "entities": [entity(24, 32, "place")]}, {"text": "the film", "entities": []}]
    found, expected = other.collate(examples), task.collate(examples)
    for name in ("labels", "mentions"):
        words, other_words = expected["words"][1, :, 1] > 0, found["words"][1, :, 1] > 0
        assert found[name][1][other_words].tolist() == expected[name][1][words].tolist()
    assert found["attention_mask"][1].tolist()[:2] == [0, 0]


def test_losses_are_sums_over_words_and_over_the_parts_of_a_text(task: TokenClassification) -> None:
    batch = task.collate([{"text": TEXT, "entities": [entity(4, 10, "blame"), entity(24, 32, "place")]}])
    outputs = torch.randn(1, 10, len(task.tags), generator=torch.Generator().manual_seed(0))
    logs, labels = outputs[0].log_softmax(-1), batch["labels"][0]
    words = [-float(logs[place, labels[place]]) for place in range(10) if labels[place] >= 0]
    assert float(task.loss(outputs, batch)) == pytest.approx(sum(words), rel=1e-5)
    assert task.loss_parts(outputs, batch)[0].tolist() == pytest.approx(
        [words[0] + words[2] + words[3] + words[4], words[1], words[5] + words[6]], rel=1e-5
    )
    with pytest.raises(DataError, match="has no 'entities'"):
        task.loss(outputs, task.collate([{"text": TEXT}]))


def test_entities_are_predicted_as_characters_of_the_text(task: TokenClassification) -> None:
    found = predicted(task, tagged(t2="B-blame", t3="B-place", t4="I-blame", t7="I-place", t8="B-place"))
    assert [(one["start"], one["end"], one["label"], one["text"]) for one in found] == [
        (4, 15, "blame", "slowly dull"),
        (24, 27, "place", "New"),  # an inside without a beginning begins one
        (28, 32, "place", "York"),
    ]
    assert all(0.9 < one["confidence"] < 1 for one in found)
    assert predicted(task, OUT) == []


def test_a_prediction_is_one_whatever_number_of_entities_it_has(task: TokenClassification) -> None:
    found = projection_of(task, {"entities": predicted(task, tagged(t2="B-place", t4="B-blame", t7="B-place"))})
    assert (found.label, found.counted) == ("blame, place", ("place", "blame", "place"))
    assert found.label == group_of(task, {"text": TEXT, "entities": [entity(0, 3, "place"), entity(4, 9, "blame")]})
    none = projection_of(task, {"entities": []})
    assert (none.label, none.confidence, none.counted) == ("none", None, ("none",))


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        (tagged(t2="B-blame", t7="B-place", t8="I-place"), {"span": [4, 10], "label": "blame"}),
        (tagged(t7="B-place", t8="I-place"), {"span": [24, 32], "label": "place"}),
        (OUT, {"span": [11, 15], "label": "O"}),  # the word that is least outside
    ],
)
def test_what_is_explained_where_nothing_is_named(
    task: TokenClassification, tags: list[str], expected: dict[str, Any]
) -> None:
    outputs = outputs_for(task, tags)
    outputs[0, 2] *= 1.5  # more certain of its first entity
    outputs[0, 4] *= 0.9
    batch = choose_targets(task, outputs, task.collate([{"text": TEXT}]))
    assert targets_of(task, batch) == [expected]
    again = choose_targets(task, -outputs, batch)
    assert again["targets"].tolist() == batch["targets"].tolist()


@pytest.mark.parametrize(
    ("target", "measured"),
    [
        ({"span": [24, 32], "label": "place"}, [(7, "B-place"), (8, "I-place")]),
        ({"span": [24, 27], "label": "O"}, [(7, "O")]),
        ({"span": [5, 6], "label": "blame"}, [(2, "B-blame")]),  # the word that it touches
        ({"tokens": [8, 7], "label": "I-place"}, [(7, "I-place"), (8, "I-place")]),
    ],
)
def test_a_span_is_measured_by_the_log_odds_of_its_words_tags(
    task: TokenClassification, target: dict[str, Any], measured: list[tuple[int, str]]
) -> None:
    outputs = torch.randn(1, 10, len(task.tags), generator=torch.Generator().manual_seed(1))
    batch = task.collate([aim(task, {"text": TEXT}, target)])
    shares = outputs[0].softmax(-1)
    odds = [shares[place, task.tags.index(tag)] for place, tag in measured]
    expected = sum(float((share / (1 - share)).log()) for share in odds)
    assert float(task.measurement(outputs, batch)) == pytest.approx(expected, rel=1e-4)
    assert not bool(task.needs_choice(batch).any())
    named = targets_of(task, batch)[0]
    assert isinstance(named, dict)
    back = task.collate([aim(task, {"text": TEXT}, named)])
    assert back["targets"].tolist() == batch["targets"].tolist()


def test_words_without_a_label_are_what_is_likeliest_of_them_as_a_whole(task: TokenClassification) -> None:
    outputs = outputs_for(task, tagged(t2="B-blame", t7="B-place", t8="I-place"))
    for target, expected in [
        ({"span": [24, 32]}, {"span": [24, 32], "label": "place"}),
        ({"span": [0, 3]}, {"span": [0, 3], "label": "O"}),
        ({"tokens": [8]}, {"tokens": [8], "label": "I-place"}),
        ({"tokens": [2]}, {"span": [4, 10], "label": "blame"}),
    ]:
        batch = choose_targets(task, outputs, task.collate([aim(task, {"text": TEXT}, target)]))
        assert targets_of(task, batch) == [expected]


@pytest.mark.parametrize(
    ("target", "problem"),
    [
        ("blame", "name words of the text"),
        ({"label": "blame"}, "name words of the text"),
        ({"span": [4, 10], "tokens": [2], "label": "blame"}, "name words of the text"),
        ({"span": [4, 10], "label": "blime"}, "Did you mean 'blame'"),
        ({"tokens": [2], "label": "blame"}, "of a token it is one of"),
        ({"span": [30, 40], "label": "blame"}, "the characters 0 to 32"),
        ({"span": [10, 11], "label": "blame"}, "holds no word: it is between two"),
        ({"tokens": [3], "label": "O"}, "token 3 is not the first of a word"),
        ({"tokens": [], "label": "O"}, "tokens names none"),
    ],
)
def test_what_cannot_be_explained_is_refused_with_what_can(
    task: TokenClassification, target: Any, problem: str
) -> None:
    with pytest.raises(InputError, match=problem.replace("(", r"\(")) as refused:
        aim(task, {"text": TEXT}, target)
    assert refused.value.field == "target"


def test_behind_the_tokens_that_are_read_nothing_is_taught_and_nothing_explained(task: TokenClassification) -> None:
    text = "the film " * 8 + "dull"
    batch = task.collate([{"text": text, "entities": [entity(72, 76, "blame")]}])
    assert batch["mentions"].max() == 0
    with pytest.raises(InputError, match="behind the tokens that are read"):
        aim(task, {"text": text}, {"span": [72, 76], "label": "blame"})


@pytest.mark.parametrize(
    ("entities", "problem"),
    [
        (None, "must be a list of entities"),
        ("Ann", "must be a list of entities"),
        ([{"start": 0, "end": 3}], "has start, end and label"),
        ([entity(4, 4, "blame")], "is not in its text"),
        ([entity(4, 99, "blame")], "is not in its text"),
        ([entity(4, 10, "person")], "unknown label 'person'"),
        ([entity(4, 7, "blame"), entity(8, 10, "place")], "share the word 'slowly'"),
    ],
)
def test_entities_that_are_no_spans_of_their_text_are_refused(
    task: TokenClassification, entities: Any, problem: str
) -> None:
    with pytest.raises(InputError, match=problem) as refused:
        task.check({"text": TEXT, "entities": entities}, labelled=True)
    assert refused.value.field == "entities"
    task.check({"text": TEXT}, labelled=False)


def test_types_that_would_be_mistaken_are_refused() -> None:
    for labels in ([], ["a", "a"], ["O"], ["none", "a"]):
        with pytest.raises(SettingsError):
            TokenClassification(piece_tokenizer(), labels)
