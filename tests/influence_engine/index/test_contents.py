"""Promises: what may not be kept is nowhere in the index, vectors and scores are the same all the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from influence_engine import Attributor, IndexSettings, InfluenceIndex
from influence_engine.errors import IndexFormatError, SettingsError
from influence_engine.index.contents import Encrypted
from tests.influence_engine.vectors import make_vectors

KEY, OTHER = bytes(range(32)), bytes(32)


def noted(examples: Any) -> list[dict[str, Any]]:
    return [
        {**one, "note": f"secret-{row}", "source": f"ward-{row % 3}", "metadata": {"who": f"person-{row % 2}"}}
        for row, one in enumerate(examples)
    ]


def built(folder: Path, task: Any, model: Any, examples: Any, **settings: Any) -> InfluenceIndex:
    chosen = IndexSettings(dtype="float32", **settings)
    return InfluenceIndex.build(model, task, examples, folder, chosen, key=KEY)


def bytes_of(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in folder.rglob("*") if file.is_file())


@pytest.mark.parametrize("kept", ["none", "encrypted"])
def test_texts_are_nowhere_in_the_index_and_the_scores_are_the_same(
    kept: Any, vector_task: Any, vector_model: Any, tmp_path: Path
) -> None:
    examples, queries = noted(make_vectors(30, seed=1, prefix="t-")), make_vectors(4, seed=2, prefix="q-")
    plain = built(tmp_path / "plain", vector_task, vector_model, examples)
    other = built(tmp_path / "other", vector_task, vector_model, examples, store_examples=kept)
    for text in (b"secret-", b"ward-", b"person-"):
        assert text in bytes_of(tmp_path / "plain")
        assert text not in bytes_of(tmp_path / "other")
    scores = [Attributor(vector_model, vector_task, index).scores(queries) for index in (plain, other)]
    assert torch.equal(*scores)
    other.verify()


def test_encrypted_examples_are_read_with_the_key_only(vector_task: Any, vector_model: Any, tmp_path: Path) -> None:
    examples = noted(make_vectors(20, seed=1, prefix="t-"))
    made = built(tmp_path, vector_task, vector_model, examples, store_examples="encrypted")
    assert made.describe([7])[0]["fields"]["note"] == "secret-7"
    assert made.describe([7])[0]["source"] == "ward-1"
    assert made.values_of("who") == [f"person-{row % 2}" for row in range(20)]
    assert made.values_of("source") == [f"ward-{row % 3}" for row in range(20)]
    blind = InfluenceIndex.open(tmp_path)
    assert blind.describe([7])[0]["fields"] == {}
    assert blind.describe([7])[0]["source"] is None
    assert blind.describe([7])[0]["label"] == made.describe([7])[0]["label"]
    assert blind.values_of("who") is None
    assert blind.values_of("source") == [None] * 20
    with pytest.raises(IndexFormatError, match="the key is not the one"):
        InfluenceIndex.open(tmp_path, key=OTHER).describe([7])
    with pytest.raises(SettingsError, match="has 5 bytes; it must have 32"):
        InfluenceIndex.open(tmp_path, key=b"short")


def test_a_build_without_its_key_is_refused_before_it_begins(
    vector_task: Any, vector_model: Any, tmp_path: Path
) -> None:
    settings = IndexSettings(store_examples="encrypted")
    with pytest.raises(SettingsError, match="needs a key of 32 bytes"):
        InfluenceIndex.build(vector_model, vector_task, make_vectors(9, seed=1, prefix="t-"), tmp_path, settings)
    assert not list(tmp_path.iterdir())


def test_where_nothing_is_kept_texts_come_from_their_source(
    vector_task: Any, vector_model: Any, tmp_path: Path
) -> None:
    examples = noted(make_vectors(20, seed=1, prefix="t-"))
    index = built(tmp_path, vector_task, vector_model, examples, store_examples="none")
    attributor = Attributor(vector_model, vector_task, index)
    query = make_vectors(1, seed=2, prefix="q-")
    (unresolved,) = attributor.attribute(query, top_k=3)
    assert [example.fields for example in unresolved.examples] == [{}, {}, {}]
    index.resolve_from(examples[:10])  # this reader may read half of it
    (answer,) = attributor.attribute(query, top_k=20)
    for example in answer.examples:
        assert example.fields.get("note") == (f"secret-{example.row}" if example.row < 10 else None)
        assert example.source == (f"ward-{example.row % 3}" if example.row < 10 else None)
    assert index.values_of("who") == [*(f"person-{row % 2}" for row in range(10)), *[None] * 10]
    assert index.values_of("source") == [*(f"ward-{row % 3}" for row in range(10)), *[None] * 10]


@given(st.text(), st.text(), st.text())
def test_sealed_text_opens_as_itself_in_its_own_place_only(example_id: str, text: str, other: str) -> None:
    sealed = Encrypted(KEY).seal(example_id, "fields", text)
    assert sealed == Encrypted(KEY).seal(example_id, "fields", text)
    assert Encrypted(KEY).open(example_id, "fields", sealed) == text
    assert Encrypted(None).open(example_id, "fields", sealed) is None
    with pytest.raises(IndexFormatError):
        Encrypted(KEY).open(example_id, "metadata", sealed)
    if other != example_id:
        with pytest.raises(IndexFormatError):
            Encrypted(KEY).open(other, "fields", sealed)
