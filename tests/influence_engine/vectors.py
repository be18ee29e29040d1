"""A model of a user's own: vectors in three classes, and the task of telling them apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from influence_engine.tasks import Batch, Example


class VectorClassification:
    """Classifies vectors; the twenty lines that a user writes for a model of their own."""

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
        chosen = batch["labels"].unsqueeze(-1)
        others = outputs.scatter(-1, chosen, float("-inf"))
        return outputs.gather(-1, chosen).squeeze(-1) - others.logsumexp(-1)

    def describe(self) -> dict[str, Any]:
        return {"type": "vectors"}


def make_network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.LayerNorm(12), nn.Linear(12, 3))


def make_vectors(count: int, *, seed: int, prefix: str) -> list[dict[str, Any]]:
    """Three overlapping clouds, a tenth of the labels wrong."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (count,), generator=generator)
    centres = torch.eye(3, 6) * 1.5
    x = centres[labels] + torch.randn(count, 6, generator=generator)
    wrong = torch.rand(count, generator=generator) < 0.1
    labels = torch.where(wrong, (labels + 1) % 3, labels)
    return [
        {
            "example_id": f"{prefix}{number:04d}",
            "x": x[number].tolist(),
            "label": int(labels[number]),
            "source": "clouds",
        }
        for number in range(count)
    ]
