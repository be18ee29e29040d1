"""A BERT of a few thousand weights, its tokenizer, and sentences whose label is in their words."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from influence_engine.tasks import TextClassification

LABELS = ("negative", "positive")
WORDS = {"negative": ["bad", "dull", "sad", "slow", "weak"], "positive": ["good", "fun", "warm", "fresh", "bright"]}
FILLERS = ["the", "a", "film", "story", "plot", "and", "of", "with", "is", "very", "actor", "scene"]


@pytest.fixture(scope="package", autouse=True)
def _one_thread() -> Iterator[None]:
    # So little work is only slowed down by a second thread, much so where the machine is busy.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    words = ["[PAD]", "[UNK]", *WORDS["negative"], *WORDS["positive"], *FILLERS]
    words_only = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    words_only.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words_only, pad_token="[PAD]", unk_token="[UNK]")


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
            words = draw.choices(FILLERS, k=draw.randint(2, 7)) + draw.choices(WORDS[label], k=draw.randint(1, 2))
            draw.shuffle(words)
            rows.append({"example_id": f"{seed}-{number}", "text": " ".join(words), "label": label})
        return rows

    return make


@pytest.fixture(scope="session")
def make_model() -> Callable[..., nn.Module]:
    """``make_model(seed=0, dropout=0.0)``: the same weights for the same seed."""

    def make(seed: int = 0, dropout: float = 0.0, **config: Any) -> nn.Module:
        settings: dict[str, Any] = {
            "vocab_size": 24,
            "hidden_size": 16,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "intermediate_size": 24,
            "max_position_embeddings": 16,
            "hidden_dropout_prob": dropout,
            "attention_probs_dropout_prob": dropout,
            "attn_implementation": "eager",
        }
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return BertForSequenceClassification(BertConfig(**{**settings, **config})).eval()

    return make
