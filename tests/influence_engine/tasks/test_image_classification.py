"""Promises: digests cover pixels and not where they lie, an index keeps what the model reads, and serving agrees."""

from __future__ import annotations

import base64
import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from influence_engine.errors import DataError, InputError
from influence_engine.tasks import (
    ImageClassification,
    PictureProcessor,
    content_digest,
    describe_task,
    fields_of,
    kept,
    picture_of,
    received,
    show,
)
from influence_engine.training.identity import data_digests

TASK = ImageClassification(PictureProcessor(size=(12, 12)), ["sound", "defective"])


@pytest.fixture
def photograph(tmp_path: Path) -> Path:
    path = tmp_path / "cell.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (30, 24), dtype=np.uint8)).save(path)
    return path


def example_of(path: Path | str) -> dict[str, object]:
    return {"example_id": "a", "image": str(path), "label": "sound"}


def test_data_are_the_same_wherever_their_files_lie_and_others_where_a_pixel_differs(
    photograph: Path, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "other" / "name.png"
    elsewhere.parent.mkdir()
    with Image.open(photograph) as picture:
        picture.save(elsewhere, compress_level=0)  # other bytes, equal pixels
        assert elsewhere.read_bytes() != photograph.read_bytes()
        before = data_digests(TASK, [example_of(photograph)])  # type: ignore[list-item]
        assert data_digests(TASK, [example_of(elsewhere)]) == before  # type: ignore[list-item]
        picture.putpixel((3, 3), 255 - picture.getpixel((3, 3)))  # type: ignore[operator]
        picture.save(elsewhere)
    after = data_digests(TASK, [example_of(elsewhere)])  # type: ignore[list-item]
    assert after["data"] == before["data"]
    assert after["inputs"] != before["inputs"]


def test_what_an_index_keeps_is_read_exactly_as_the_photograph_was(photograph: Path) -> None:
    example = example_of(photograph)
    stored = kept(TASK, example)
    assert set(stored) == set(example)
    assert show(TASK, stored) == "cell.png"
    assert str(photograph.parent) not in str(stored)
    assert torch.equal(TASK.collate([stored])["pixel_values"], TASK.collate([example])["pixel_values"])
    found = picture_of(fields_of(TASK), stored)
    assert found is not None
    assert found[1] == "image/png"
    assert picture_of(fields_of(TASK), example) is None  # a path is none that anybody else could open


def test_serving_reads_what_training_reads(photograph: Path) -> None:
    sent = received(fields_of(TASK), {"image": base64.b64encode(photograph.read_bytes()).decode()})
    batch = TASK.collate([sent])
    np.testing.assert_array_equal(TASK.serving_inputs([sent])["pixel_values"], batch["pixel_values"].numpy())
    logits = torch.tensor([[0.3, -1.2]])
    assert TASK.serving_predictions(logits.numpy())[0]["scores"] == pytest.approx(
        TASK.predictions(logits, batch)[0]["scores"]
    )


@pytest.mark.parametrize("value", [None, "no/such.png", "data:image/png;base64,AAAA", 5])
def test_what_cannot_be_read_is_refused_under_the_field_s_name(value: object) -> None:
    with pytest.raises(InputError) as refused:
        TASK.check({"image": value}, labelled=False)
    assert refused.value.field == "image"
    assert refused.value.message.startswith("'image'")


def test_a_label_that_does_not_exist_is_refused(photograph: Path) -> None:
    TASK.check({"image": str(photograph)}, labelled=False)
    with pytest.raises(DataError, match="unknown label 'broken'"):
        TASK.check({"image": str(photograph), "label": "broken"}, labelled=False)
    with pytest.raises(DataError, match="unknown label None"):
        TASK.check({"image": str(photograph)}, labelled=True)


def test_a_file_that_changes_is_read_again(photograph: Path) -> None:
    before = TASK.collate([example_of(photograph)])["pixel_values"]
    Image.new("L", (8, 8), 200).save(photograph)
    assert not torch.equal(TASK.collate([example_of(photograph)])["pixel_values"], before)


def test_a_task_can_be_copied_and_is_described_by_what_it_does() -> None:
    assert describe_task(copy.deepcopy(TASK)) == describe_task(copy.copy(TASK)) == describe_task(TASK)
    smaller = ImageClassification(TASK.processor, TASK.labels, image_size=8)
    assert describe_task(smaller) != describe_task(TASK)
    assert content_digest(TASK, []) == content_digest(smaller, [])
