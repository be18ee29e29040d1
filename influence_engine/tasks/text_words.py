"""The words of texts: at which tokens they begin, and which characters, spans and tokens belong to which of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from influence_engine.errors import DataError, InputError
from influence_engine.names import did_you_mean, listing
from influence_engine.tasks.contract import Array


def encoded_words(tokenizer: Any, texts: Sequence[str], max_length: int) -> tuple[dict[str, Array], Array]:
    """What a model reads of texts, and their words.

    Args:
        tokenizer: A fast tokenizer.
        texts: The texts.
        max_length: Longer texts are cut to this many tokens.

    Returns:
        What the tokenizer makes, ``[B, T]`` each; and ``[B, T, 2]``, at the first token of each word the word's first
        character and one past its last, zeros elsewhere.
    """
    encoding = tokenizer(list(texts), padding=True, truncation=True, max_length=max_length, return_offsets_mapping=True)
    offsets = encoding.pop("offset_mapping")
    encoded = {name: np.array(rows, dtype=np.int64) for name, rows in encoding.items()}
    words = np.zeros((*encoded["input_ids"].shape, 2), np.int64)
    for row, spans in enumerate(offsets):
        first, word = 0, None
        for position, (number, (start, end)) in enumerate(zip(encoding.word_ids(row), spans, strict=True)):
            if number is None or end <= start:
                continue
            if number != word:
                first, word = position, number
                words[row, first, 0] = start
            words[row, first, 1] = end
    return encoded, words


def words_within(words: Array, start: int, end: int) -> Array:
    """The tokens, of ``words [T, 2]``, of the words with a character from ``start`` to before ``end``."""
    places: Array = np.flatnonzero((words[:, 0] < end) & (words[:, 1] > start))
    return places


def places_of_span(words: Array, span: Sequence[int], text: str) -> Array:
    """The tokens of the words of a span that somebody asks about.

    Raises:
        InputError: it is not in the text, or holds no word that is read; the error's ``field`` is ``target``.
    """
    start, end = span
    if not 0 <= start < end <= len(text):
        raise InputError(
            f"the span {list(span)} is not in the text, which has the characters 0 to {len(text)}", field="target"
        )
    places = words_within(words, start, end)
    if not len(places):
        read = int(words[:, 1].max())
        where = f"behind the tokens that are read, which end at {read}" if start >= read else "between two"
        raise InputError(f"the span {list(span)} holds no word: it is {where}", field="target")
    return places


def places_of_tokens(words: Array, tokens: Sequence[int]) -> Array:
    """The tokens that somebody asks about, in order.

    Raises:
        InputError: one is not the first of a word; the error's ``field`` is ``target``.
    """
    first = np.flatnonzero(words[:, 1] > 0).tolist()
    if not tokens:
        raise InputError("tokens names none", field="target")
    for token in tokens:
        if token not in first:
            known = listing([str(one) for one in first])
            raise InputError(
                f"token {token} is not the first of a word: tags are of words, at the tokens {known}", field="target"
            )
    return np.array(sorted(set(tokens)))


def check_entity(entity: Any, text: str, labels: Sequence[str], field: str) -> None:
    """Refuses what is no span of a text with one of the labels.

    Raises:
        DataError: with ``field``.
    """
    if not isinstance(entity, Mapping) or not {"start", "end", "label"} <= set(entity):
        raise DataError(f"an entity has start, end and label, got {entity!r}", field=field)
    start, end, label = entity["start"], entity["end"], entity["label"]
    if type(start) is not int or type(end) is not int or not 0 <= start < end <= len(text):
        raise DataError(
            f"the entity from {start!r} to {end!r} is not in its text, which has the characters 0 to {len(text)}",
            field=field,
        )
    if label not in labels:
        raise DataError(
            f"unknown label {label!r}; the labels are {listing(labels)}.{did_you_mean(str(label), labels)}", field=field
        )
