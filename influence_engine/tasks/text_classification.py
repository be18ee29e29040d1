"""Classification of a whole text: sentiment, topic, intent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from influence_engine.errors import DataError, InputError, SettingsError
from influence_engine.names import did_you_mean
from influence_engine.tasks.capabilities import classification_head
from influence_engine.tasks.contract import Array, Batch, Example, Head, Unit
from influence_engine.tasks.fields import ExampleField
from influence_engine.tasks.identity import digest_of_processor
from influence_engine.tasks.targets import NO_TARGET

_TOGETHER = 1024
"""Texts whose tokens are counted at once."""


class TextClassification:
    """One label a text; the measurement is the log-odds of the target label.

    Args:
        tokenizer: A tokenizer of ``transformers``.
        labels: The labels' names, in the order of the model's outputs.
        max_length: Longer texts are cut to this many tokens.
        text: Name of the field that holds the text.
        label: Name of the field that holds the label's name.
    """

    def __init__(
        self,
        tokenizer: Any,
        labels: Sequence[str],
        *,
        max_length: int = 128,
        text: str = "text",
        label: str = "label",
    ) -> None:
        if len(labels) < 2 or len(set(labels)) != len(labels):
            raise SettingsError(f"labels must be at least two different names, got {list(labels)}", field="labels")
        self.tokenizer = tokenizer
        self.labels = list(labels)
        self.max_length = max_length
        self.text = text
        self.label = label
        self._numbers = {name: number for number, name in enumerate(self.labels)}

    @property
    def fields(self) -> tuple[ExampleField, ...]:
        """The text and its label."""
        return self.fields_for(self.labels, text=self.text, label=self.label)

    @staticmethod
    def fields_for(
        labels: Sequence[str], *, text: str = "text", label: str = "label", **_: Any
    ) -> tuple[ExampleField, ...]:
        """The fields of a task with these arguments; the others do not matter."""
        return ExampleField(text, "text"), ExampleField(label, "label", "target", tuple(labels))

    @property
    def processor(self) -> Any:
        """The tokenizer."""
        return self.tokenizer

    def head(self) -> Head:
        """One output for each label."""
        return classification_head("AutoModelForSequenceClassification", self.labels)

    def check(self, example: Example, *, labelled: bool) -> None:
        """Refuses a text that is missing, empty or not a string, and a label that does not exist."""
        text = example.get(self.text)
        if not isinstance(text, str):
            raise InputError(f"{self.text!r} must be a string, got {type(text).__name__}", field=self.text)
        if not text.strip():
            raise InputError(f"{self.text!r} is empty; send at least one word", field=self.text)
        label = example.get(self.label)
        if label is None and not labelled:
            return
        if label not in self._numbers:
            known = ", ".join(repr(name) for name in self.labels)
            meant = did_you_mean(label, self.labels) if isinstance(label, str) else ""
            raise InputError(
                f"unknown label {label!r}; the labels are {known}{'.' if meant else ''}{meant}", field=self.label
            )

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Returns ``input_ids``, ``attention_mask`` (and ``token_type_ids``) ``[B, T]`` and ``labels`` ``[B]``."""
        encoded = {name: torch.from_numpy(array) for name, array in self._encoded(examples).items()}
        labels = [self._number(example) for example in examples]
        return {**encoded, "labels": torch.tensor(labels, dtype=torch.long)}

    def sizes(self, examples: Sequence[Example]) -> list[int]:
        """Tokens of each example, from many texts at once."""
        found: list[int] = []
        for start in range(0, len(examples), _TOGETHER):
            texts = [example[self.text] for example in examples[start : start + _TOGETHER]]
            encoded = self.tokenizer(texts, truncation=True, max_length=self.max_length)
            found += [len(tokens) for tokens in encoded["input_ids"]]
        return found

    def unread(self, example: Example) -> str | None:
        """How many of its tokens are read, where it has more than ``max_length``."""
        text = example.get(self.text)
        if not isinstance(text, str):  # a subclass that reads other fields says itself what it cuts
            return None
        found = len(self.tokenizer(text, verbose=False)["input_ids"])
        return None if found <= self.max_length else f"only the first {self.max_length} of {found} tokens were read"

    def units(self, example: Example) -> list[Unit]:
        """Its tokens, with their characters in the text; special tokens stand for no part of it.

        Raises:
            SettingsError: the tokenizer is a slow one, which cannot say where a token comes from.
        """
        if not self.tokenizer.is_fast:
            raise SettingsError(
                f"{type(self.tokenizer).__name__} cannot say where a token comes from; use the fast form of it",
                field="tokenizer",
            )
        encoded = self.tokenizer(
            example[self.text], truncation=True, max_length=self.max_length, return_offsets_mapping=True
        )
        places = enumerate(encoded["offset_mapping"])
        return [Unit(self.text, start, end, position) for position, (start, end) in places if end > start]

    def model_inputs(self, batch: Batch) -> dict[str, Tensor]:
        """Everything of the batch but the labels."""
        return {name: tensor for name, tensor in batch.items() if name != "labels"}

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """Logits ``[B, C]``."""
        logits: Tensor = model(**self.model_inputs(batch)).logits
        return logits

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Cross-entropy of each example, ``[B]``.

        Raises:
            DataError: an example has no label.
        """
        labels = batch["labels"]
        if bool((labels == NO_TARGET).any()):
            raise DataError(f"an example has no {self.label!r}; a loss needs one", field=self.label)
        return functional.cross_entropy(outputs, labels, reduction="none")

    def measurement(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Log-odds of the target label: its logit minus the logsumexp of the others, ``[B]``."""
        labels = batch["labels"]
        target = torch.where(labels == NO_TARGET, outputs.detach().argmax(-1), labels).unsqueeze(-1)
        others = outputs.scatter(-1, target, float("-inf"))
        return outputs.gather(-1, target).squeeze(-1) - others.logsumexp(-1)

    def probability(self, measurement: Tensor) -> Tensor:
        """Of the target label: a measurement is its log-odds."""
        return measurement.sigmoid()

    def predictions(self, outputs: Tensor, batch: Batch) -> list[dict[str, Any]]:
        """Label, confidence and the probability of every label, for each example."""
        probabilities = outputs.detach().float().softmax(-1).cpu().tolist()
        return [self._prediction(row) for row in probabilities]

    def serving_inputs(self, examples: Sequence[Example]) -> dict[str, Array]:
        """What ``model_inputs`` makes of ``collate``, as arrays ``[B, T]``."""
        return self._encoded(examples)

    def serving_predictions(self, outputs: Array) -> list[dict[str, Any]]:
        """What ``predictions`` makes of logits ``[B, C]``."""
        exponents = np.exp(outputs - outputs.max(-1, keepdims=True))
        return [self._prediction(row) for row in (exponents / exponents.sum(-1, keepdims=True)).tolist()]

    def describe(self) -> dict[str, Any]:
        """Identity of this task for digests."""
        return {
            "type": "text_classification",
            "labels": self.labels,
            "max_length": self.max_length,
            "text": self.text,
            "label": self.label,
            "tokenizer_digest": digest_of_processor(self.tokenizer),
        }

    def _encoded(self, examples: Sequence[Example]) -> dict[str, Array]:
        encoded = self.tokenizer(
            [example[self.text] for example in examples], padding=True, truncation=True, max_length=self.max_length
        )
        # Asked for tensors, transformers would first go through every token in Python: half the time of a large batch.
        return {name: np.array(rows, dtype=np.int64) for name, rows in encoded.items()}

    def _number(self, example: Mapping[str, Any]) -> int:
        label = example.get(self.label)
        if label is None:
            return NO_TARGET
        if label not in self._numbers:
            raise DataError(f"unknown label {label!r}; the labels are {self.labels}", field=self.label)
        return self._numbers[label]

    def _prediction(self, probabilities: list[float]) -> dict[str, Any]:
        best = max(range(len(probabilities)), key=probabilities.__getitem__)
        return {
            "label": self.labels[best],
            "confidence": probabilities[best],
            "scores": dict(zip(self.labels, probabilities, strict=True)),
        }
