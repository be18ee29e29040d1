"""A task of six classes, a network of a convolution and linear layers, and examples for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


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
