"""Vectors in memory: the same products in whatever type the processor is fastest with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from influence_engine import InfluenceIndex
from influence_engine.index.resident import ResidentVectors
from influence_engine.index.store import LARGEST, ExampleTable, write_table
from tests.influence_engine.vectors import VectorClassification

ROUNDING = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}


def vectors_and_queries(rows: int = 3_000, queries: int = 9) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(rows, 70, generator=generator).half()
    return vectors, torch.randn(queries, 70, generator=generator)


def error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).abs().max() / expected.double().abs().max())


@pytest.mark.parametrize("queries", [1, 4, 5, 9])
@pytest.mark.parametrize("kind", list(ROUNDING))
def test_products_are_right_to_the_types_rounding_and_exact_ones_to_single_precision(
    kind: torch.dtype, queries: int
) -> None:
    vectors, asked = vectors_and_queries(queries=queries)
    resident = ResidentVectors(vectors.to(kind))
    expected = asked.double() @ vectors.to(kind).double().T
    assert error(resident.products(asked), expected) < ROUNDING[kind]
    assert error(resident.products(asked, exact=True), expected) < 1e-6


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("queries", [1, 9])
def test_the_largest_products_that_there_can_be_are_numbers(kind: torch.dtype, queries: int) -> None:
    vectors = torch.full((3, 2_000), LARGEST, dtype=kind)
    asked = torch.full((queries, 2_000), 0.7)
    found = ResidentVectors(vectors).products(asked)
    torch.testing.assert_close(found, torch.full((queries, 3), 0.7 * LARGEST * 2_000), rtol=1e-2, atol=0)


def test_single_rows_are_in_single_precision() -> None:
    vectors, _ = vectors_and_queries()
    rows = torch.tensor([2_999, 0, 7])
    found = ResidentVectors(vectors)[rows]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, vectors[rows].float(), rtol=0, atol=0)


def test_what_was_read_is_what_was_stored_in_one_of_the_two_types(tmp_path: Path) -> None:
    vectors, _ = vectors_and_queries()
    named = [{"example_id": str(row), "label": "a"} for row in range(len(vectors))]
    blocks = [(named, vectors, torch.zeros(len(vectors)))]
    write_table(
        tmp_path / "t.lance", blocks, group=lambda one: one["label"], weight=1.0, dimensions=70, dtype="float16"
    )
    resident = ResidentVectors.read(ExampleTable(tmp_path / "t.lance"), torch.device("cpu"))
    assert resident.shape == (3_000, 70)
    assert resident.bytes == 2 * vectors.numel()
    found = resident[torch.arange(3_000)]
    assert torch.equal(found, vectors.float()) or torch.equal(found, vectors.bfloat16().float())


def test_an_index_answers_one_query_as_it_answers_many(
    vector_model: nn.Module,
    vector_task: VectorClassification,
    vector_train: list[dict[str, Any]],
    index_folder: Path,
) -> None:
    index = InfluenceIndex.build(vector_model, vector_task, vector_train, index_folder)
    encoded = torch.randn(9, index.manifest.dimensions, generator=torch.Generator().manual_seed(1))
    alone = torch.cat([index.scores(one.unsqueeze(0)) for one in encoded])
    assert error(alone, index.scores(encoded, exact=True)) < ROUNDING[torch.bfloat16]
