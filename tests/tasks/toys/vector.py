"""Three classes of points, by the four methods alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from influence_engine.tasks import Batch, Example
from tests.tasks.toys.base import Toy, log_odds, network, points, with_ids


class Vectors:
    """Three classes of points, by the four methods alone and a name for them."""

    def collate(self, examples: Sequence[Example]) -> Batch:
        return {
            "x": torch.tensor([example["x"] for example in examples]),
            "labels": torch.tensor([example.get("label", -1) for example in examples]),
        }

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        return model(batch["x"])

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        return functional.cross_entropy(outputs, batch["labels"], reduction="none")

    def measurement(self, outputs: Tensor, batch: Batch) -> Tensor:
        return log_odds(outputs, batch["labels"])


def vectors(folder: Path) -> Toy:
    rows = [{"x": x, "label": int(x[0] > 0) + int(x[1] > 0)} for x in points(24, 0)]
    return Toy("vectors", Vectors(), network(3), with_ids(rows), [{"x": x} for x in points(4, 1)])
