"""Answers to prompts, by a small Llama."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from influence_engine.errors import InputError
from influence_engine.tasks import Batch, Example, ExampleField, Head, Target
from tests.small_models import LABELS, SIZES, WORDS, seeded, sentence, word_tokenizer
from tests.tasks.toys.base import IGNORED, Toy, with_ids


class Language:
    """Completions of prompts; the labels are shifted within the loss, and what is explained is an answer given."""

    measurement_unit = "nats"

    def __init__(self, processor: Any) -> None:
        self.processor = processor

    @property
    def fields(self) -> tuple[ExampleField, ...]:
        return ExampleField("prompt", "text"), ExampleField("answer", "text", "target")

    def head(self) -> Head:
        return Head("AutoModelForCausalLM")

    def collate(self, examples: Sequence[Example]) -> Batch:
        prompts = [self.processor(example["prompt"])["input_ids"] for example in examples]
        answers = [self.processor(example.get("answer", ""))["input_ids"] for example in examples]
        length = max(len(prompt) + len(answer) for prompt, answer in zip(prompts, answers, strict=True))
        tokens = torch.zeros(len(examples), length, dtype=torch.long)
        labels = torch.full_like(tokens, IGNORED)
        mask = torch.zeros_like(tokens)
        for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            end = len(prompt) + len(answer)
            tokens[row, :end] = torch.tensor([*prompt, *answer])
            labels[row, len(prompt) : end] = tokens[row, len(prompt) : end]
            mask[row, :end] = 1
        return {"input_ids": tokens, "attention_mask": mask, "labels": labels}

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        flat = functional.cross_entropy(
            outputs[:, :-1].transpose(1, 2), batch["labels"][:, 1:], ignore_index=IGNORED, reduction="none"
        )
        return flat.sum(-1)

    def measurement(self, outputs: Tensor, batch: Batch) -> Tensor:
        return -self.loss(outputs, batch)

    def needs_choice(self, batch: Batch) -> Tensor:
        return torch.zeros(len(batch["labels"]), dtype=torch.bool)

    def choose_targets(self, outputs: Tensor, batch: Batch) -> Batch:
        return batch

    def targets(self, batch: Batch) -> list[Target | None]:
        return [{"answer": self.processor.decode(row[row >= 0])} for row in batch["labels"]]

    def aim(self, example: Example, target: Target) -> Example:
        if not isinstance(target, dict) or not isinstance(target.get("answer"), str):
            raise InputError("a target is an answer, a text", field="target")
        return {**example, "answer": target["answer"]}

    def show(self, example: Example) -> str:
        return f"{example['prompt']} ..."

    def describe(self) -> dict[str, Any]:
        return {"type": "language"}


def language(folder: Path) -> Toy:
    draw, rows = random.Random(3), []
    for _ in range(20):
        label = draw.choice(LABELS)
        rows.append({"prompt": sentence(draw, label), "answer": f"very {draw.choice(WORDS[label])}"})

    def model(seed: int) -> nn.Module:
        config = LlamaConfig(
            **{**SIZES, "num_hidden_layers": 1}, tie_word_embeddings=False, attn_implementation="eager"
        )
        return seeded(lambda: LlamaForCausalLM(config), seed)

    queries = [{"prompt": "the film is", "answer": "good"}, {"prompt": "a sad plot is", "answer": "very dull"}]
    targets: list[Target] = [{"answer": "good fun"}, {"answer": "bad"}]
    return Toy(
        "language",
        Language(word_tokenizer()),
        model,
        with_ids(rows),
        queries,
        targets,
        "good",
        plain=False,
        learning_rate=0.005,
    )
