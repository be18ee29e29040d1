"""What tasks over one text share: its tokens, how many there are, and where in the text each one comes from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from influence_engine.errors import InputError, SettingsError
from influence_engine.tasks.contract import Array, Example, Unit

_TOGETHER = 1024
"""Texts whose tokens are counted at once."""


def check_text(example: Example, field: str) -> None:
    """Refuses a text that is missing, empty or not a string, by an ``InputError``."""
    text = example.get(field)
    if not isinstance(text, str):
        raise InputError(f"{field!r} must be a string, got {type(text).__name__}", field=field)
    if not text.strip():
        raise InputError(f"{field!r} is empty; send at least one word", field=field)


def encoded_texts(tokenizer: Any, texts: Sequence[str], max_length: int) -> dict[str, Array]:
    """Everything that a model reads of texts, ``[B, T]`` each; longer texts are cut to ``max_length`` tokens."""
    encoded = tokenizer(list(texts), padding=True, truncation=True, max_length=max_length)
    # Asked for tensors, transformers would first go through every token in Python: half the time of a large batch.
    return {name: np.array(rows, dtype=np.int64) for name, rows in encoded.items()}


def token_counts(tokenizer: Any, examples: Sequence[Example], field: str, max_length: int) -> list[int]:
    """Tokens of each example's text, from many texts at once."""
    found: list[int] = []
    for start in range(0, len(examples), _TOGETHER):
        texts = [example[field] for example in examples[start : start + _TOGETHER]]
        found += [len(tokens) for tokens in tokenizer(texts, truncation=True, max_length=max_length)["input_ids"]]
    return found


def token_units(tokenizer: Any, example: Example, field: str, max_length: int) -> list[Unit]:
    """The tokens of an example's text, with their characters; special tokens stand for no part of it.

    Raises:
        SettingsError: as ``require_offsets``.
    """
    require_offsets(tokenizer)
    encoded = tokenizer(example[field], truncation=True, max_length=max_length, return_offsets_mapping=True)
    places = enumerate(encoded["offset_mapping"])
    return [Unit(field, start, end, position) for position, (start, end) in places if end > start]


def require_offsets(tokenizer: Any) -> None:
    """Refuses a tokenizer that cannot say where a token comes from.

    Raises:
        SettingsError: it is a slow one.
    """
    if not tokenizer.is_fast:
        raise SettingsError(
            f"{type(tokenizer).__name__} cannot say where a token comes from; use the fast form of it",
            field="tokenizer",
        )


def unread_tokens(tokenizer: Any, example: Example, text: str, max_length: int) -> str | None:
    """How many of the tokens of its ``text`` are read, where there are more than ``max_length``."""
    value = example.get(text)
    if not isinstance(value, str):  # a subclass that reads other fields says itself what it cuts
        return None
    found = len(tokenizer(value, verbose=False)["input_ids"])
    return None if found <= max_length else f"only the first {max_length} of {found} tokens were read"
