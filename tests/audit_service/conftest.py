"""Small real models, and places for state: SQLite files, and a schema of a real PostgreSQL server."""

from __future__ import annotations

import csv
import itertools
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BertForSequenceClassification,
    BertModel,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
)

from audit_service.config import load_config
from audit_service.store.location import StateLocation
from audit_service.workflows.finetuning import run_finetuning
from audit_service.workflows.index_building import build_index
from audit_service.workspace import Workspace
from tests.postgres import PostgresServer, new_namespace
from tests.small_models import small_bert, tokenizer_for

GOOD = ("superb", "moving", "funny", "brilliant")
BAD = ("dull", "clumsy", "tedious", "hollow")
THINGS = ("film", "plot", "cast", "ending", "script", "score")
SENTENCES = ("the {thing} is {word}", "what a {word} {thing}", "a {word} {thing} after all")


def sentences() -> list[tuple[str, int]]:
    """144 sentences with 1 for good and 0 for bad, good and bad in turn."""
    pairs = itertools.product(SENTENCES, THINGS, zip(BAD, GOOD, strict=True))
    return [
        (sentence.format(thing=thing, word=words[label]), label) for sentence, thing, words in pairs for label in (0, 1)
    ]


class Rows(torch.utils.data.Dataset[dict[str, Any]]):
    """Tokenized sentences as the Trainer wants them."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._rows = [{**tokenizer(text), "labels": label} for text, label in sentences()]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, number: int) -> dict[str, Any]:
        return self._rows[number]


@pytest.fixture(scope="session")
def adopted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``support`` (a checkpoint), ``base`` and ``train.csv``, as somebody else's training left it.

    A small BERT fine-tuned by the plain Trainer of transformers, with dropout and in bfloat16.
    """
    folder = tmp_path_factory.mktemp("adopted")
    tokenizer = tokenizer_for([text for text, _ in sentences()])
    torch.manual_seed(0)
    settings = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64, "max_position_embeddings": 64}
    dropout = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    base = small_bert(BertModel, seed=None, vocab_size=len(tokenizer), **settings, **dropout)
    base.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    model = BertForSequenceClassification.from_pretrained(folder / "base", id2label={0: "bad", 1: "good"})
    arguments = TrainingArguments(
        output_dir=str(folder / "out"),
        num_train_epochs=12,
        per_device_train_batch_size=16,
        learning_rate=3e-3,
        bf16=True,
        use_cpu=True,
        seed=0,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=Rows(tokenizer), processing_class=tokenizer)
    trainer.train()
    trainer.save_model(str(folder / "support"))
    with (folder / "train.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["key", "sentence", "sentiment"])
        writer.writerows([f"s{number}", text, label] for number, (text, label) in enumerate(sentences()))
    return folder


FILMS = "csv: train.csv, columns: {id: key, text: sentence, label: sentiment}, labels: {0: bad, 1: good}"
FILMS_CONFIG = f"""
task: {{type: text_classification, labels: [bad, good]}}
base_model: {{path: base}}
data:
  train: {{{FILMS}, part: train}}
  validation: {{{FILMS}, part: validation}}
finetune: {{epochs: 3, batch_size: 16, learning_rate: 3e-3, warmup_ratio: 0}}
"""


@pytest.fixture(scope="session")
def finished_films(adopted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a recorded run, held-out examples and an index; use ``films``, a copy of it."""
    folder = tmp_path_factory.mktemp("films")
    shutil.copytree(adopted / "base", folder / "base")
    shutil.copy(adopted / "train.csv", folder)
    (folder / "configs").mkdir()
    (folder / "configs" / "films.yaml").write_text(FILMS_CONFIG)
    config = load_config(folder / "configs" / "films.yaml")
    workspace = Workspace(config)
    run_finetuning(workspace)
    build_index(workspace)
    return folder


@pytest.fixture
def films(finished_films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the finished project, as the current folder, with the config ``films``."""
    shutil.copytree(finished_films, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> StateLocation:
    """Where a test keeps its state, on each database."""
    if request.param == "sqlite":
        return StateLocation(tmp_path / "state")
    return on_server(request.getfixturevalue("postgres"), tmp_path)


@pytest.fixture
def server_place(postgres: PostgresServer, tmp_path: Path) -> StateLocation:
    """Where a test keeps its state, on the server."""
    return on_server(postgres, tmp_path)


def on_server(postgres: PostgresServer, folder: Path) -> StateLocation:
    """A schema of its own, and a folder for the keys."""
    return StateLocation(folder / "state", url=postgres.url(), namespace=new_namespace())
