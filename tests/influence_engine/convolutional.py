"""A small convolutional network with batch normalisation, and the task of classifying its images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from influence_engine.tasks import Batch, Example

SIDE = 6


class Block(nn.Module):
    """A residual convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.norm(self.conv(x)))


class ConvolutionalNetwork(nn.Module):
    """Batch normalisation with statistics of its own below, within and above a list of blocks."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.stem = nn.Conv2d(1, 4, 3, padding=1)
            self.norm = nn.BatchNorm2d(4)
            self.blocks = nn.ModuleList([Block(4) for _ in range(3)])
            self.last_norm = nn.InstanceNorm2d(4, affine=True, track_running_stats=True)
            self.dropout = nn.Dropout(dropout)
            self.head = nn.Linear(4, 2)
            with torch.no_grad():
                self(torch.randn(32, 1, SIDE, SIDE))
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.norm(self.stem(x)))
        for block in self.blocks:
            x = block(x)
        return self.head(self.dropout(torch.tanh(self.last_norm(x)).mean((2, 3))))

    def freeze_normalisation(self) -> None:
        """As convolutional networks are commonly fine-tuned."""
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d | nn.InstanceNorm2d):
                module.requires_grad_(False)


class ImageClassification:
    """Classifies square images of one channel."""

    def collate(self, examples: Sequence[Example]) -> Batch:
        return {
            "x": torch.tensor([example["pixels"] for example in examples]).view(-1, 1, SIDE, SIDE),
            "labels": torch.tensor([example.get("label", -1) for example in examples]),
        }

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        return model(batch["x"])

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        return functional.cross_entropy(outputs, batch["labels"], reduction="none")

    def measurement(self, outputs: Tensor, batch: Batch) -> Tensor:
        return outputs[:, 1] - outputs[:, 0]

    def describe(self) -> dict[str, Any]:
        return {"type": "images"}


def make_images(count: int) -> list[dict[str, Any]]:
    """Noise that is brighter for one of the two labels."""
    generator = torch.Generator().manual_seed(1)
    return [
        {
            "example_id": f"image-{number}",
            "pixels": (torch.randn(SIDE * SIDE, generator=generator) + 0.5 * (number % 2)).tolist(),
            "label": number % 2,
        }
        for number in range(count)
    ]
