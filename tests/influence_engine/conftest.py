"""Small models: one of a user's own (vectors, three classes), and a BERT of a few thousand weights."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from influence_engine import FinetuneSettings, Run, finetune
from influence_engine.tasks import Batch, Example, TextClassification
from tests.small_models import LABELS, sentence, small_bert, word_tokenizer


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


@pytest.fixture(scope="session")
def vector_task() -> VectorClassification:
    return VectorClassification()


@pytest.fixture(scope="session")
def vector_train() -> list[dict[str, Any]]:
    return make_vectors(60, seed=1, prefix="train-")


@pytest.fixture(scope="session")
def vector_queries() -> list[dict[str, Any]]:
    return make_vectors(8, seed=2, prefix="query-")


@pytest.fixture(scope="session")
def vector_run(
    tmp_path_factory: pytest.TempPathFactory, vector_task: VectorClassification, vector_train: list[dict[str, Any]]
) -> Run:
    """The network, trained with AdamW and recorded."""
    folder = tmp_path_factory.mktemp("runs") / "vectors"
    settings = FinetuneSettings(trainable="all", epochs=12, batch_size=12, learning_rate=0.02, weight_decay=0.0)
    finetune(vector_task, make_network(), vector_train, settings=settings, record_to=folder)
    return Run.open(folder)


@pytest.fixture
def vector_model(vector_run: Run) -> nn.Module:
    return vector_run.load_model(make_network())


@pytest.fixture
def fresh_network() -> nn.Module:
    return make_network()


@pytest.fixture
def index_folder(tmp_path: Path) -> Path:
    return tmp_path / "index"


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return word_tokenizer()


@pytest.fixture(scope="session")
def task(tokenizer: Any) -> TextClassification:
    return TextClassification(tokenizer, LABELS)


@pytest.fixture(scope="session")
def make_examples() -> Callable[..., list[dict[str, Any]]]:
    """``make_examples(count, seed=0)``: sentences of different lengths."""

    def make(count: int, seed: int = 0) -> list[dict[str, Any]]:
        draw = random.Random(seed)
        rows = []
        for number in range(count):
            label = draw.choice(LABELS)
            rows.append({"example_id": f"{seed}-{number}", "text": sentence(draw, label, most=7), "label": label})
        return rows

    return make


@pytest.fixture(scope="session")
def make_model() -> Callable[..., nn.Module]:
    """``make_model(seed=0, dropout=0.0)``: the same weights for the same seed."""

    def make(seed: int = 0, dropout: float = 0.0, **settings: Any) -> nn.Module:
        rates = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
        sizes = {"num_hidden_layers": 3, "max_position_embeddings": 16}
        model: nn.Module = small_bert(seed=seed, **{**sizes, **rates, **settings})
        return model

    return make
