"""Pictures that lie in files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from influence_engine.tasks import Batch, Example, ExampleField
from tests.small_models import seeded
from tests.tasks.toys.base import Toy, log_odds, with_ids


class Images:
    """Dark and bright pictures; an example says where its pixels lie."""

    names = ("dark", "bright")

    @property
    def fields(self) -> tuple[ExampleField, ...]:
        return ExampleField("image", "image"), ExampleField("label", "label", "target", self.names)

    def content(self, example: Example) -> bytes:
        return Path(example["image"]).read_bytes()

    def collate(self, examples: Sequence[Example]) -> Batch:
        pixels = [torch.from_numpy(np.load(example["image"], allow_pickle=False)) for example in examples]
        labels = [self.names.index(example["label"]) if "label" in example else -1 for example in examples]
        return {"pixels": torch.stack(pixels), "labels": torch.tensor(labels)}

    def model_inputs(self, batch: Batch) -> dict[str, Tensor]:
        return {"input": batch["pixels"]}

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        return model(batch["pixels"] if "pixels" in batch else batch["input"])

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        return functional.cross_entropy(outputs, batch["labels"], reduction="none")

    def measurement(self, outputs: Tensor, batch: Batch) -> Tensor:
        return log_odds(outputs, batch["labels"])

    def probability(self, measurement: Tensor) -> Tensor:
        return measurement.sigmoid()

    def predictions(self, outputs: Tensor, batch: Batch) -> list[dict[str, Any]]:
        shares = outputs.detach().softmax(-1).tolist()
        return [{"label": self.names[int(row[1] > row[0])], "confidence": max(row)} for row in shares]

    def describe(self) -> dict[str, Any]:
        return {"type": "images", "names": list(self.names)}


def images(folder: Path) -> Toy:
    draw, rows = torch.Generator().manual_seed(6), []
    for number in range(20):
        label = Images.names[number % 2]
        pixels = torch.rand(1, 6, 6, generator=draw) * 0.7 + (0.3 if label == "bright" else 0.0)
        path = folder / f"{number}.npy"
        np.save(path, pixels.numpy())
        rows.append({"image": str(path), "label": label})

    def network() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(4, 4, 3, stride=2),
            nn.Tanh(),
            nn.Flatten(),
            nn.Linear(16, 2),
        )

    queries = [{"image": rows[0]["image"]}, {"image": rows[1]["image"]}]
    return Toy(
        "images", Images(), lambda seed: seeded(network, seed), with_ids(rows[2:]), queries, ["dark", "bright"], "grey"
    )
