"""Promise: rows of an example that share its inputs give the products of the materialised rows, whatever the layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from influence_engine.curvature.gradient_passes import GradientPasses
from influence_engine.gradients import track
from influence_engine.gradients.shared_rows import BatchRows, inputs_in_common


class Classes:
    """Classifies tensors in as many classes as the model has outputs."""

    def collate(self, examples: Any) -> dict[str, Tensor]:
        return {
            "x": torch.stack([one["x"] for one in examples]),
            "labels": torch.tensor([one["label"] for one in examples]),
        }

    def outputs(self, model: nn.Module, batch: Any) -> Tensor:
        found: Tensor = model(batch["x"])
        return found

    def loss(self, outputs: Tensor, batch: Any) -> Tensor:
        return functional.cross_entropy(outputs, batch["labels"], reduction="none")

    def measurement(self, outputs: Tensor, batch: Any) -> Tensor:
        return -self.loss(outputs, batch)

    def describe(self) -> dict[str, Any]:
        return {"type": "classes"}


def convolutional() -> nn.Module:
    torch.manual_seed(0)
    dense = [nn.Flatten(), nn.Linear(27, 8), nn.Tanh(), nn.Linear(8, 6)]
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.Tanh(), *dense)


def examples(count: int) -> list[dict[str, Any]]:
    torch.manual_seed(1)
    return [{"example_id": str(n), "x": torch.randn(1, 5, 5), "label": n % 6} for n in range(count)]


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
