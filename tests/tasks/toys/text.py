"""One label a text: the shipped task on a small BERT."""

from __future__ import annotations

import random
from pathlib import Path

from influence_engine.tasks import TextClassification
from tests.small_models import LABELS, sentence, small_bert, word_tokenizer
from tests.tasks.toys.base import Toy, with_ids


def text(folder: Path) -> Toy:
    draw = random.Random(0)
    rows = [{"text": sentence(draw, label), "label": label} for label in draw.choices(LABELS, k=20)]
    return Toy(
        "text",
        TextClassification(word_tokenizer(), LABELS),
        lambda seed: small_bert(num_labels=2, seed=seed),
        with_ids(rows),
        [{"text": sentence(draw, label)} for label in LABELS],
        list(LABELS),
        "neutral",
        plain=False,
    )
