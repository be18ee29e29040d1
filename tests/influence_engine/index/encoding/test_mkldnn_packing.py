"""A packed matrix multiplies as the plain one does."""

from __future__ import annotations

import pytest
import torch

from influence_engine.index.encoding.mkldnn_packing import packed, product


@pytest.mark.parametrize("rows", [1, 3, 32])
def test_a_product_with_a_packed_matrix_is_the_plain_product(rows: int) -> None:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(256, 512, generator=generator).bfloat16()
    queries = torch.randn(rows, 512, generator=generator)
    expected = queries.bfloat16().double() @ matrix.double().T
    found = product(queries, packed(matrix)).double()
    assert float((found - expected).norm() / expected.norm()) < 4e-3


def test_other_precisions_stay_as_they_are() -> None:
    matrix = torch.randn(8, 16)
    assert packed(matrix) is matrix
    queries = torch.randn(2, 16)
    assert torch.equal(product(queries, matrix), queries @ matrix.T)


def test_an_operator_that_is_missing_leaves_the_matrix_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = torch.randn(8, 16).bfloat16()

    def missing(*_: object) -> None:
        raise AttributeError("no such operator")

    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", missing, raising=False)
    assert packed(matrix) is matrix
