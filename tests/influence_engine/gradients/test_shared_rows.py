"""Promise: rows of an example that share its inputs give the products of the materialised rows, whatever the layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from influence_engine.curvature.gradient_passes import GradientPasses
from influence_engine.gradients import track
from influence_engine.gradients.shared_rows import BatchRows, inputs_in_common
from tests.influence_engine.six_classes import Classes, convolutional, examples


@pytest.fixture
def directions() -> list[Any]:
    """Gradients of a batch of five along each direction of six outputs, by layer."""
    model = convolutional()
    passes = GradientPasses(model, Classes(), track(model), batch_tokens=None, draws=2, seed=0)
    return [row.gradients for row in passes.rows(examples(5))]


def test_products_and_combinations_are_those_of_the_rows_themselves(directions: list[Any]) -> None:
    assert inputs_in_common(directions[0])
    rows = BatchRows.of(directions)
    dense = {name: torch.stack([one[name].dense() for one in directions], 1) for name in directions[0]}
    count, along = rows.size
    assert (count, along) == (5, len(directions))
    values = {name: torch.randn(one.shape[3], one.shape[2], 4) for name, one in dense.items()}
    coefficients, weights = torch.randn(count, along, 4), torch.rand(count, along)

    expected = sum(torch.einsum("ncij,jib->ncb", one, values[name]) for name, one in dense.items())
    torch.testing.assert_close(rows.products(values), expected)
    parts = torch.cat([part.products(values) for part in rows.split(2)])
    torch.testing.assert_close(parts, expected)
    torch.testing.assert_close(rows.weighted(weights).products(values), expected * weights.unsqueeze(-1))
    totals = {name: torch.ones_like(one) for name, one in values.items()}
    rows.add_combinations(totals, coefficients)
    for name, one in dense.items():
        torch.testing.assert_close(totals[name], 1 + torch.einsum("ncij,ncb->jib", one, coefficients))
        torch.testing.assert_close(rows.layers[name].dense(), one)
