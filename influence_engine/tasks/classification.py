"""What tasks with one label an example have in common, whatever the example is: loss, measurement, predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from influence_engine.errors import DataError, InputError, SettingsError
from influence_engine.names import did_you_mean
from influence_engine.tasks.capabilities import classification_head
from influence_engine.tasks.contract import Array, Batch, Example, Head
from influence_engine.tasks.targets import NO_TARGET


class Classification:
    """One label an example; the measurement is the log-odds of the target label.

    Args:
        labels: The labels' names, in the order of the model's outputs.
        label: Name of the field that holds the label's name.

    Raises:
        SettingsError: fewer than two names, or one twice.
    """

    auto_class: str
    """The class of ``transformers`` that loads a model for it."""

    def __init__(self, labels: Sequence[str], label: str) -> None:
        if len(labels) < 2 or len(set(labels)) != len(labels):
            raise SettingsError(f"labels must be at least two different names, got {list(labels)}", field="labels")
        self.labels = list(labels)
        self.label = label
        self._numbers = {name: number for number, name in enumerate(self.labels)}

    def head(self) -> Head:
        """One output for each label."""
        return classification_head(self.auto_class, self.labels)

    def check_label(self, example: Example, *, labelled: bool) -> None:
        """Refuses a label that does not exist, and with ``labelled`` one that is missing."""
        label = example.get(self.label)
        if label is None and not labelled:
            return
        if label not in self._numbers:
            known = ", ".join(repr(name) for name in self.labels)
            meant = did_you_mean(label, self.labels) if isinstance(label, str) else ""
            raise InputError(
                f"unknown label {label!r}; the labels are {known}{'.' if meant else ''}{meant}", field=self.label
            )

    def label_numbers(self, examples: Sequence[Example]) -> Tensor:
        """The examples' labels by number ``[B]``, ``NO_TARGET`` where an example has none."""
        return torch.tensor([self._number(example) for example in examples], dtype=torch.long)

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

    def serving_predictions(self, outputs: Array) -> list[dict[str, Any]]:
        """What ``predictions`` makes of logits ``[B, C]``."""
        exponents = np.exp(outputs - outputs.max(-1, keepdims=True))
        return [self._prediction(row) for row in (exponents / exponents.sum(-1, keepdims=True)).tolist()]

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
