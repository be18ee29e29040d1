"""Promises: examples are digested by all that they hold, arrays included; what cannot be digested is named early."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from influence_engine import FinetuneSettings, IndexSettings, InfluenceIndex, finetune
from influence_engine.errors import DataError
from influence_engine.training.identity import data_digest, differences
from tests.fixtures import make_before_the_move as before
from tests.influence_engine.vectors import VectorClassification, make_network

SETTINGS = FinetuneSettings(epochs=2, batch_size=12, learning_rate=0.02)


def one(value: Any) -> str:
    return data_digest([{"example_id": "a", "x": value}])


def test_examples_that_are_plain_json_have_the_digest_that_they_always_had() -> None:
    data = json.loads((before.FOLDER / "data.json").read_text())
    recorded = json.loads((before.FOLDER / "vectors" / "run" / "manifest.json").read_text())

    assert data_digest(data["vectors"]) == recorded["digests"]["data"]
    assert data_digest(data["vectors"][::-1]) == recorded["digests"]["data"]


def test_an_array_counts_with_its_numbers_its_dtype_and_its_shape() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    changed = array.copy()
    changed[1, 2] = np.nextafter(changed[1, 2], 9)

    different = [array, changed, array.reshape(3, 2), array.astype(np.float64), array.astype(np.int32), array.tolist()]
    assert len({one(value) for value in different}) == len(different)
    assert one(array) == one(array.copy(order="F")) == one(array.astype(">f4")) == one(torch.from_numpy(array))
    assert one({"deep": [array]}) != one({"deep": [changed]})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.uint8, torch.bool, torch.int64])
def test_a_tensor_of_any_dtype_is_digested(dtype: torch.dtype) -> None:
    tensor = torch.tensor([1, 0, 1]).to(dtype)

    assert one(tensor) == one(tensor.clone())
    assert one(tensor) != one(1 - tensor if dtype != torch.bool else ~tensor)


def test_a_scalar_of_numpy_is_its_number() -> None:
    assert one(np.int64(3)) == one(3)
    assert one(np.float64(0.5)) == one(np.float32(0.5)) == one(0.5)
    assert one(np.bool_(True)) == one(True)
    assert one(np.array(["good", "bad"])) == one(["good", "bad"])


class ArrayClassification(VectorClassification):
    """The vectors as arrays, as whoever loads pixels has them."""

    def collate(self, examples: Any) -> Any:
        plain = [{**example, "x": np.asarray(example["x"]).tolist()} for example in examples]
        return super().collate(plain)


def with_arrays(train: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {**example, "x": np.array(example["x"], np.float32), "label": np.int64(example["label"])} for example in train
    ]


def test_examples_with_arrays_are_recorded_indexed_and_found_again(
    vector_train: list[dict[str, Any]], tmp_path: Path
) -> None:
    task, train = ArrayClassification(), with_arrays(vector_train)
    run = finetune(task, make_network(), train, settings=SETTINGS, record_to=tmp_path / "run")
    index = InfluenceIndex.build_from_run(
        run, task, train, tmp_path / "index", IndexSettings(dtype="float32"), into=make_network()
    )

    assert index.manifest.digests["data"] == run.digests["data"] == data_digest(train)
    (shown,) = index.describe([0])
    assert (shown["fields"]["x"]["dtype"], shown["fields"]["x"]["shape"]) == ("float32", [6])
    assert shown["label"] == str(train[0]["label"])


@pytest.mark.parametrize("value", [{1, 2}, float("nan"), object(), np.datetime64("2026-01-01")])
@pytest.mark.parametrize("how", ["recorded", "not recorded", "built"])
def test_what_is_neither_json_nor_an_array_is_refused_at_once_with_its_field_and_example(
    value: Any, how: str, vector_train: list[dict[str, Any]], tmp_path: Path
) -> None:
    train: Any = [dict(example) for example in vector_train]
    train[7]["extra"] = value
    untouched: nn.Module = make_network()

    def never(stage: str, done: int, total: int, note: str = "") -> None:
        raise AssertionError("work had begun")

    def work() -> None:
        if how == "built":
            InfluenceIndex.build(untouched, VectorClassification(), train, tmp_path / "index", progress=never)
        else:
            record = {"record_to": tmp_path / "run"} if how == "recorded" else {}
            finetune(VectorClassification(), untouched, train, settings=SETTINGS, progress=never, **record)

    with pytest.raises(DataError, match="example 'train-0007': the field 'extra' is not JSON") as caught:
        work()
    assert caught.value.field == "extra"
    assert not any(tmp_path.iterdir())


def test_versions_are_no_difference_and_a_setting_that_came_later_has_its_default() -> None:
    now = {"settings": SETTINGS.model_dump(mode="json"), "data": "d"}
    recorded = json.loads(json.dumps({**now, "versions": {"torch": "1.0"}}))
    del recorded["settings"]["checkpoints"], recorded["settings"]["lora"]["alpha"]

    assert differences(recorded, now) == []
    assert differences(recorded, {**now, "settings": {**now["settings"], "checkpoints": 3}}) == [
        "settings.checkpoints: None in the run, 3 now"
    ]
