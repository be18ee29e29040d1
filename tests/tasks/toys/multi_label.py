"""Several labels a point, of which one is explained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from influence_engine.errors import InputError
from influence_engine.tasks import Batch, Example, ExampleField, Target
from tests.tasks.toys.base import Toy, network, points, with_ids


class MultiLabel:
    """Points that have some of three properties; what is explained is one property."""

    names = ("left", "high", "far")

    @property
    def fields(self) -> tuple[ExampleField, ...]:
        return ExampleField("x", "numbers"), ExampleField("properties", "labels", "target", self.names)

    def collate(self, examples: Sequence[Example]) -> Batch:
        told = [example.get("properties", ()) for example in examples]
        return {
            "x": torch.tensor([example["x"] for example in examples]),
            "properties": torch.tensor([[float(name in one) for name in self.names] for one in told]),
            "target": torch.tensor([example.get("target", -1) for example in examples]),
        }

    def model_inputs(self, batch: Batch) -> dict[str, Tensor]:
        return {"input": batch["x"]}

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        return model(batch["x"] if "x" in batch else batch["input"])

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        losses = functional.binary_cross_entropy_with_logits(
            outputs, batch["properties"].to(outputs.dtype), reduction="none"
        )
        return losses.sum(-1)

    def measurement(self, outputs: Tensor, batch: Batch) -> Tensor:
        return outputs.gather(-1, batch["target"].clamp_min(0).unsqueeze(-1)).squeeze(-1)

    def needs_choice(self, batch: Batch) -> Tensor:
        return batch["target"] < 0

    def choose_targets(self, outputs: Tensor, batch: Batch) -> Batch:
        return {**batch, "target": torch.where(batch["target"] < 0, outputs.argmax(-1), batch["target"])}

    def targets(self, batch: Batch) -> list[Target | None]:
        return [{"label": self.names[number]} for number in batch["target"].tolist()]

    def aim(self, example: Example, target: Target) -> Example:
        name = target.get("label") if isinstance(target, dict) else target
        if name not in self.names:
            raise InputError(f"there is no property {name!r}; there are {', '.join(self.names)}", field="target")
        return {**example, "target": self.names.index(name)}

    def probability(self, measurement: Tensor) -> Tensor:
        return measurement.sigmoid()

    def predictions(self, outputs: Tensor, batch: Batch) -> list[dict[str, Any]]:
        return [
            {"properties": {name: share for name, share in zip(self.names, row, strict=True) if share >= 0.5}}
            for row in outputs.detach().sigmoid().tolist()
        ]

    def describe(self) -> dict[str, Any]:
        return {"type": "multi-label", "names": list(self.names)}


def multi_label(folder: Path) -> Toy:
    names = MultiLabel.names
    rows = [
        {
            "x": x,
            "properties": [name for name, there in zip(names, (x[0] < 0, x[1] > 0, x[2] > 1), strict=True) if there],
        }
        for x in points(24, 2)
    ]
    queries = [{"x": x} for x in points(4, 3)]
    return Toy("multi-label", MultiLabel(), network(3), with_ids(rows), queries, [{"label": "left"}, "far"], "near")
