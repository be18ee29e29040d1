"""What many tests need a small one of: a BERT of a few thousand weights, its tokenizer, and sentences for both."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterable
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

WORDS = {"negative": ["bad", "dull", "sad", "slow", "weak"], "positive": ["good", "fun", "warm", "fresh", "bright"]}
FILLERS = ["the", "a", "film", "story", "plot", "and", "of", "with", "is", "very", "actor", "scene"]
LABELS = tuple(WORDS)

SIZES: dict[str, Any] = {
    "vocab_size": 24,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
}
"""Of a small transformer whose config names its sizes as BERT's does; the vocabulary is that of ``word_tokenizer``."""


def small_bert(kind: Any = BertForSequenceClassification, *, seed: int | None = 0, **settings: Any) -> Any:
    """A BERT of ``SIZES``, without dropout, in evaluation mode.

    Args:
        kind: The class of ``transformers``.
        seed: The same weights for the same seed, and the global generator as it was; None draws from that.
        settings: Of its ``BertConfig``, where they are others.
    """
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = BertConfig(**{**SIZES, **dropout, "attn_implementation": "eager", **settings})
    return seeded(lambda: kind(config), seed)


def seeded(make: Any, seed: int | None) -> Any:
    """What ``make()`` gives with that seed, in evaluation mode; the global generator is as before."""
    with contextlib.nullcontext() if seed is None else torch.random.fork_rng():
        if seed is not None:
            torch.manual_seed(seed)
        model: nn.Module = make().eval()
    return model


def word_tokenizer() -> PreTrainedTokenizerFast:
    """A token for each of ``WORDS`` and ``FILLERS``, and nothing around a text."""
    words = ["[PAD]", "[UNK]", *WORDS["negative"], *WORDS["positive"], *FILLERS]
    words_only = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    words_only.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words_only, pad_token="[PAD]", unk_token="[UNK]")


def tokenizer_for(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A token for each word of ``texts``, in lower case; a text stands between ``[CLS]`` and ``[SEP]``."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    tokenizer.train_from_iterator(texts, trainers.WordLevelTrainer(special_tokens=special))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


def sentence(draw: random.Random, label: str, *, most: int = 6) -> str:
    """Two to ``most`` fillers and one or two words of the label, in any order."""
    words = draw.choices(FILLERS, k=draw.randint(2, most)) + draw.choices(WORDS[label], k=draw.randint(1, 2))
    draw.shuffle(words)
    return " ".join(words)
