"""Spans of a text."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import BertForTokenClassification

from influence_engine.errors import InputError
from influence_engine.tasks import Batch, Example, ExampleField, Head, Projection, Target, Unit
from tests.small_models import LABELS, WORDS, sentence, small_bert, word_tokenizer
from tests.tasks.toys.base import IGNORED, Toy, log_odds, with_ids


class Entities:
    """Words that praise or blame, as spans; what is explained is a span as a label.

    A batch's ``labels`` are what training teaches; ``targets`` what is explained: a label at the positions of a span,
    ``-1`` at all of a query that names none.
    """

    names = ("O", "blame", "praise")

    def __init__(self, processor: Any) -> None:
        self.processor = processor

    @property
    def fields(self) -> tuple[ExampleField, ...]:
        return ExampleField("text", "text"), ExampleField("entities", "spans", "target", self.names[1:])

    def head(self) -> Head:
        return Head("AutoModelForTokenClassification", {"num_labels": len(self.names)}, len(self.names))

    def collate(self, examples: Sequence[Example]) -> Batch:
        encoded = self.processor(
            [example["text"] for example in examples],
            padding=True,
            return_offsets_mapping=True,
            return_token_type_ids=False,
        )
        mask, offsets = torch.tensor(encoded["attention_mask"]), torch.tensor(encoded["offset_mapping"])
        labels = torch.where(mask > 0, 0, IGNORED)
        targets = torch.full_like(labels, IGNORED)
        for row, example in enumerate(examples):
            for span in example.get("entities", ()):
                labels[row][_within(offsets[row], mask[row], span["start"], span["end"])] = self._number(span["label"])
            target = example.get("target")
            if target is None:
                targets[row][mask[row] > 0] = -1
            else:
                targets[row][_within(offsets[row], mask[row], *target["span"])] = self._number(target["label"])
        return {
            "input_ids": torch.tensor(encoded["input_ids"]),
            "attention_mask": mask,
            "offsets": offsets,
            "labels": labels,
            "targets": targets,
        }

    def model_inputs(self, batch: Batch) -> dict[str, Tensor]:
        return {name: batch[name] for name in ("input_ids", "attention_mask")}

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        return model(**self.model_inputs(batch)).logits

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        flat = functional.cross_entropy(
            outputs.transpose(1, 2), batch["labels"], ignore_index=IGNORED, reduction="none"
        )
        return flat.sum(-1)

    def measurement(self, outputs: Tensor, batch: Batch) -> Tensor:
        return log_odds(outputs, batch["targets"]).sum(-1)

    def needs_choice(self, batch: Batch) -> Tensor:
        return (batch["targets"] == -1).any(-1)

    def choose_targets(self, outputs: Tensor, batch: Batch) -> Batch:
        """Of what is not named: all that was predicted to be an entity, or, where nothing was, that nothing is."""
        predicted, targets = outputs.argmax(-1), batch["targets"]
        asked = targets == -1
        found = asked & (predicted > 0)
        wanted = torch.where(found.any(-1, keepdim=True), found, asked)
        return {**batch, "targets": torch.where(asked, torch.where(wanted, predicted, IGNORED), targets)}

    def targets(self, batch: Batch) -> list[Target | None]:
        return [
            {"entities": self._spans(offsets, targets)}
            for offsets, targets in zip(batch["offsets"], batch["targets"], strict=True)
        ]

    def aim(self, example: Example, target: Target) -> Example:
        if not isinstance(target, dict) or target.get("label") not in self.names or "span" not in target:
            raise InputError(f"a target is a span and a label of {', '.join(self.names)}", field="target")
        return {**example, "target": target}

    def predictions(self, outputs: Tensor, batch: Batch) -> list[dict[str, Any]]:
        predicted = torch.where(batch["labels"] == IGNORED, IGNORED, outputs.detach().argmax(-1))
        return [{"entities": self._spans(*one)} for one in zip(batch["offsets"], predicted, strict=True)]

    def project(self, prediction: Mapping[str, Any]) -> Projection:
        return Projection(", ".join(sorted({one["label"] for one in prediction["entities"]})) or "none", None)

    def units(self, example: Example) -> list[Unit]:
        offsets = self.processor(example["text"], return_offsets_mapping=True)["offset_mapping"]
        return [Unit("text", start, end, position) for position, (start, end) in enumerate(offsets)]

    def describe(self) -> dict[str, Any]:
        return {"type": "entities", "names": list(self.names)}

    def _number(self, name: str) -> int:
        return self.names.index(name)

    def _spans(self, offsets: Tensor, labels: Tensor) -> list[dict[str, Any]]:
        return [
            {"start": int(start), "end": int(end), "label": self.names[number]}
            for (start, end), number in zip(offsets.tolist(), labels.tolist(), strict=True)
            if number > 0
        ]


def _within(offsets: Tensor, mask: Tensor, start: int, end: int) -> Tensor:
    return (offsets[:, 0] >= start) & (offsets[:, 1] <= end) & (mask > 0)


def _entities(text: str) -> list[dict[str, Any]]:
    found, start = [], 0
    for word in text.split(" "):
        for label, name in zip(WORDS, ("blame", "praise"), strict=True):
            if word in WORDS[label]:
                found.append({"start": start, "end": start + len(word), "label": name})
        start += len(word) + 1
    return found


def tokens(folder: Path) -> Toy:
    draw = random.Random(2)
    texts = [sentence(draw, label) for label in draw.choices(LABELS, k=20)]
    queries = [{"text": "the good film is very dull"}, {"text": "a story with the actor"}]
    return Toy(
        "tokens",
        Entities(word_tokenizer()),
        lambda seed: small_bert(BertForTokenClassification, num_labels=3, seed=seed),
        with_ids([{"text": one, "entities": _entities(one)} for one in texts]),
        queries,
        [{"span": [4, 8], "label": "blame"}, {"span": [0, 3], "label": "O"}],
        {"span": [4, 8], "label": "person"},
        plain=False,
        learning_rate=0.003,
    )
