"""Classification of a whole text: sentiment, topic, intent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from influence_engine.tasks.classification import Classification
from influence_engine.tasks.contract import Array, Batch, Example, Unit
from influence_engine.tasks.fields import ExampleField
from influence_engine.tasks.identity import digest_of_processor
from influence_engine.tasks.tokenised_text import check_text, encoded_texts, token_counts, token_units, unread_tokens


class TextClassification(Classification):
    """One label a text; the measurement is the log-odds of the target label.

    Args:
        tokenizer: A tokenizer of ``transformers``.
        labels: The labels' names, in the order of the model's outputs.
        max_length: Longer texts are cut to this many tokens.
        text: Name of the field that holds the text.
        label: Name of the field that holds the label's name.
    """

    auto_class = "AutoModelForSequenceClassification"

    def __init__(
        self,
        tokenizer: Any,
        labels: Sequence[str],
        *,
        max_length: int = 128,
        text: str = "text",
        label: str = "label",
    ) -> None:
        super().__init__(labels, label)
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.text = text

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

    def check(self, example: Example, *, labelled: bool) -> None:
        """Refuses a text that is missing, empty or not a string, and a label that does not exist."""
        check_text(example, self.text)
        self.check_label(example, labelled=labelled)

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Returns ``input_ids``, ``attention_mask`` (and ``token_type_ids``) ``[B, T]`` and ``labels`` ``[B]``."""
        encoded = {name: torch.from_numpy(array) for name, array in self._encoded(examples).items()}
        return {**encoded, "labels": self.label_numbers(examples)}

    def sizes(self, examples: Sequence[Example]) -> list[int]:
        """Tokens of each example, from many texts at once."""
        return token_counts(self.tokenizer, examples, self.text, self.max_length)

    def unread(self, example: Example) -> str | None:
        """How many of its tokens are read, where it has more than ``max_length``."""
        return unread_tokens(self.tokenizer, example, self.text, self.max_length)

    def units(self, example: Example) -> list[Unit]:
        """Its tokens, with their characters in the text; special tokens stand for no part of it.

        Raises:
            SettingsError: the tokenizer is a slow one, which cannot say where a token comes from.
        """
        return token_units(self.tokenizer, example, self.text, self.max_length)

    def model_inputs(self, batch: Batch) -> dict[str, Tensor]:
        """Everything of the batch but the labels."""
        return {name: tensor for name, tensor in batch.items() if name != "labels"}

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """Logits ``[B, C]``."""
        logits: Tensor = model(**self.model_inputs(batch)).logits
        return logits

    def serving_inputs(self, examples: Sequence[Example]) -> dict[str, Array]:
        """What ``model_inputs`` makes of ``collate``, as arrays ``[B, T]``."""
        return self._encoded(examples)

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
        return encoded_texts(self.tokenizer, [example[self.text] for example in examples], self.max_length)
