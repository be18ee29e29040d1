"""A number for each point."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from influence_engine.tasks import Batch, Example, ExampleField
from tests.tasks.toys.base import Toy, network, points, with_ids


class Regression:
    """A number for each point; what is explained is the number."""

    measurement_unit = "metres"

    @property
    def fields(self) -> tuple[ExampleField, ...]:
        return ExampleField("x", "numbers"), ExampleField("height", "number", "target")

    def collate(self, examples: Sequence[Example]) -> Batch:
        return {
            "x": torch.tensor([example["x"] for example in examples]),
            "labels": torch.tensor([[float(example.get("height", 0.0))] for example in examples]),
        }

    def model_inputs(self, batch: Batch) -> dict[str, Tensor]:
        return {"input": batch["x"]}

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        return model(batch["x"] if "x" in batch else batch["input"])

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        return (outputs - batch["labels"]).square().sum(-1) / 2

    def measurement(self, outputs: Tensor, batch: Batch) -> Tensor:
        return outputs.squeeze(-1)

    def predictions(self, outputs: Tensor, batch: Batch) -> list[dict[str, Any]]:
        return [{"height": row[0]} for row in outputs.detach().tolist()]

    def describe(self) -> dict[str, Any]:
        return {"type": "regression"}


def regression(folder: Path) -> Toy:
    rows = [{"x": x, "height": x[0] - 0.5 * x[1] ** 2} for x in points(24, 4)]
    return Toy("regression", Regression(), network(1), with_ids(rows), [{"x": x} for x in points(4, 5)])
