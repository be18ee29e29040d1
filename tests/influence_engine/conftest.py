"""Small models: one of a user's own (vectors, three classes), and a BERT of a few thousand weights."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from influence_engine import FinetuneSettings, Run, finetune
from influence_engine.tasks import TextClassification
from tests.influence_engine.vectors import VectorClassification, make_network, make_vectors
from tests.small_models import LABELS, sentence, small_bert, word_tokenizer


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
