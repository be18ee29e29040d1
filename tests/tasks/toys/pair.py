"""One label for two texts: the shipped task, changed in what it reads."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from influence_engine.errors import InputError
from influence_engine.tasks import Example, ExampleField, TextClassification, Unit
from tests.small_models import LABELS, sentence, small_bert, word_tokenizer
from tests.tasks.toys.base import Toy, with_ids


class Pairs(TextClassification):
    """Whether two texts are of one mind."""

    first, second = "premise", "hypothesis"

    @property
    def fields(self) -> tuple[ExampleField, ...]:
        names = tuple(self.labels)
        return (
            ExampleField(self.first, "text"),
            ExampleField(self.second, "text"),
            ExampleField("label", "label", "target", names),
        )

    def check(self, example: Example, *, labelled: bool) -> None:
        for name in (self.first, self.second):
            if not isinstance(example.get(name), str):
                raise InputError(f"{name!r} must be a string", field=name)

    def sizes(self, examples: Sequence[Example]) -> list[int]:
        return [len(row) for row in self._pairs(examples, padding=False)["input_ids"]] if examples else []

    def units(self, example: Example) -> list[Unit]:
        found = self._pairs([example], padding=False, return_offsets_mapping=True)
        names = {0: self.first, 1: self.second}
        return [
            Unit(names[part], start, end, position)
            for position, ((start, end), part) in enumerate(
                zip(found["offset_mapping"][0], found.sequence_ids(0), strict=True)
            )
            if part is not None
        ]

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "type": "pairs"}

    def _encoded(self, examples: Sequence[Example]) -> dict[str, Any]:
        return {name: np.array(rows, dtype=np.int64) for name, rows in self._pairs(examples, padding=True).items()}

    def _pairs(self, examples: Sequence[Example], **how: Any) -> Any:
        firsts, seconds = ([example[name] for example in examples] for name in (self.first, self.second))
        return self.tokenizer(firsts, seconds, return_token_type_ids=True, **how)


def pairs(folder: Path) -> Toy:
    draw, rows = random.Random(1), []
    for _ in range(20):
        first, second = draw.choices(LABELS, k=2)
        label = "same" if first == second else "other"
        rows.append({"premise": sentence(draw, first), "hypothesis": sentence(draw, second), "label": label})
    return Toy(
        "pairs",
        Pairs(word_tokenizer(), ["same", "other"]),
        lambda seed: small_bert(num_hidden_layers=1, num_labels=2, seed=seed),
        with_ids(rows),
        [
            {"premise": "the film is good", "hypothesis": "a dull plot"},
            {"premise": "sad", "hypothesis": "a weak scene"},
        ],
        ["same", "other"],
        "neither",
        plain=False,
    )
