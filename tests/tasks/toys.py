"""A small task of every kind, with a model of a few hundred weights and data that it can learn.

They are what a user would write: nothing here is known to the engine but by the contract. A new task gets a toy of its
own, and is done when ``test_contract.py`` passes for it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from influence_engine.errors import InputError
from influence_engine.tasks import (
    Batch,
    Example,
    ExampleField,
    Head,
    Projection,
    Target,
    Task,
    TextClassification,
    Unit,
)

WORDS = {"negative": ["bad", "dull", "sad", "slow", "weak"], "positive": ["good", "fun", "warm", "fresh", "bright"]}
FILLERS = ["the", "a", "film", "story", "plot", "and", "of", "with", "is", "very", "actor", "scene"]
LABELS = tuple(WORDS)
IGNORED = -100


def make_tokenizer() -> Any:
    words = ["[PAD]", "[UNK]", *WORDS["negative"], *WORDS["positive"], *FILLERS]
    words_only = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    words_only.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words_only, pad_token="[PAD]", unk_token="[UNK]")


def small_bert(kind: Any, labels: int, seed: int) -> nn.Module:
    config = BertConfig(
        vocab_size=24,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=32,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        attn_implementation="eager",
        num_labels=labels,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: nn.Module = kind(config).eval()
    return model


def seeded(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make().eval()


def log_odds(outputs: Tensor, targets: Tensor) -> Tensor:
    """Of the target at each position; 0 where there is none."""
    named = targets.clamp_min(0).unsqueeze(-1)
    others = outputs.scatter(-1, named, float("-inf")).logsumexp(-1)
    return (outputs.gather(-1, named).squeeze(-1) - others) * (targets >= 0)


class Vectors:
    """Three classes of points, by the four methods alone and a name for them."""

    def collate(self, examples: Sequence[Example]) -> Batch:
        return {
            "x": torch.tensor([example["x"] for example in examples]),
            "labels": torch.tensor([example.get("label", -1) for example in examples]),
        }

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        return model(batch["x"])

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        return functional.cross_entropy(outputs, batch["labels"], reduction="none")

    def measurement(self, outputs: Tensor, batch: Batch) -> Tensor:
        return log_odds(outputs, batch["labels"])


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


class MultiLabel:
    """Points that have some of three properties; what is explained is one property."""

    names = ("left", "high", "far")

    @property
    def fields(self) -> tuple[ExampleField, ...]:
        return ExampleField("x", "numbers"), ExampleField("properties", "labels", "target", self.names)

    def collate(self, examples: Sequence[Example]) -> Batch:
        told = [example.get("properties", ()) for example in examples]
        return {
            "x": torch.tensor([example["x"] for example in examples]),
            "properties": torch.tensor([[float(name in one) for name in self.names] for one in told]),
            "target": torch.tensor([example.get("target", -1) for example in examples]),
        }

    def model_inputs(self, batch: Batch) -> dict[str, Tensor]:
        return {"input": batch["x"]}

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        return model(batch["x"] if "x" in batch else batch["input"])

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        losses = functional.binary_cross_entropy_with_logits(
            outputs, batch["properties"].to(outputs.dtype), reduction="none"
        )
        return losses.sum(-1)

    def measurement(self, outputs: Tensor, batch: Batch) -> Tensor:
        return outputs.gather(-1, batch["target"].clamp_min(0).unsqueeze(-1)).squeeze(-1)

    def needs_choice(self, batch: Batch) -> Tensor:
        return batch["target"] < 0

    def choose_targets(self, outputs: Tensor, batch: Batch) -> Batch:
        return {**batch, "target": torch.where(batch["target"] < 0, outputs.argmax(-1), batch["target"])}

    def targets(self, batch: Batch) -> list[Target | None]:
        return [{"label": self.names[number]} for number in batch["target"].tolist()]

    def aim(self, example: Example, target: Target) -> Example:
        name = target.get("label") if isinstance(target, dict) else target
        if name not in self.names:
            raise InputError(f"there is no property {name!r}; there are {', '.join(self.names)}", field="target")
        return {**example, "target": self.names.index(name)}

    def probability(self, measurement: Tensor) -> Tensor:
        return measurement.sigmoid()

    def predictions(self, outputs: Tensor, batch: Batch) -> list[dict[str, Any]]:
        return [
            {"properties": {name: share for name, share in zip(self.names, row, strict=True) if share >= 0.5}}
            for row in outputs.detach().sigmoid().tolist()
        ]

    def describe(self) -> dict[str, Any]:
        return {"type": "multi-label", "names": list(self.names)}


class Regression:
    """A number for each point; what is explained is the number."""

    measurement_unit = "metres"

    @property
    def fields(self) -> tuple[ExampleField, ...]:
        return ExampleField("x", "numbers"), ExampleField("height", "number", "target")

    def collate(self, examples: Sequence[Example]) -> Batch:
        return {
            "x": torch.tensor([example["x"] for example in examples]),
            "labels": torch.tensor([[float(example.get("height", 0.0))] for example in examples]),
        }

    def model_inputs(self, batch: Batch) -> dict[str, Tensor]:
        return {"input": batch["x"]}

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        return model(batch["x"] if "x" in batch else batch["input"])

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        return (outputs - batch["labels"]).square().sum(-1) / 2

    def measurement(self, outputs: Tensor, batch: Batch) -> Tensor:
        return outputs.squeeze(-1)

    def predictions(self, outputs: Tensor, batch: Batch) -> list[dict[str, Any]]:
        return [{"height": row[0]} for row in outputs.detach().tolist()]

    def describe(self) -> dict[str, Any]:
        return {"type": "regression"}


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


class Images:
    """Dark and bright pictures; an example says where its pixels lie."""

    names = ("dark", "bright")

    @property
    def fields(self) -> tuple[ExampleField, ...]:
        return ExampleField("image", "image"), ExampleField("label", "label", "target", self.names)

    def content(self, example: Example) -> bytes:
        return Path(example["image"]).read_bytes()

    def collate(self, examples: Sequence[Example]) -> Batch:
        pixels = [torch.from_numpy(np.load(example["image"], allow_pickle=False)) for example in examples]
        labels = [self.names.index(example["label"]) if "label" in example else -1 for example in examples]
        return {"pixels": torch.stack(pixels), "labels": torch.tensor(labels)}

    def model_inputs(self, batch: Batch) -> dict[str, Tensor]:
        return {"input": batch["pixels"]}

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        return model(batch["pixels"] if "pixels" in batch else batch["input"])

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        return functional.cross_entropy(outputs, batch["labels"], reduction="none")

    def measurement(self, outputs: Tensor, batch: Batch) -> Tensor:
        return log_odds(outputs, batch["labels"])

    def probability(self, measurement: Tensor) -> Tensor:
        return measurement.sigmoid()

    def predictions(self, outputs: Tensor, batch: Batch) -> list[dict[str, Any]]:
        shares = outputs.detach().softmax(-1).tolist()
        return [{"label": self.names[int(row[1] > row[0])], "confidence": max(row)} for row in shares]

    def describe(self) -> dict[str, Any]:
        return {"type": "images", "names": list(self.names)}


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


@dataclass(frozen=True)
class Toy:
    """One kind of task.

    Attributes:
        name: Of the kind.
        task: The task.
        model: A model by its seed.
        train: Training examples.
        queries: Inputs without targets.
        targets: What can be explained, as an API would say it.
        bad_target: What cannot; ``None`` where the task has nothing to name.
        plain: Whether the model is a module of one's own, not one of ``transformers``.
        learning_rate: Of its training; so gentle that leaving one example out is a small change.
    """

    name: str
    task: Task
    model: Callable[[int], nn.Module]
    train: list[dict[str, Any]]
    queries: list[dict[str, Any]]
    targets: list[Target] = field(default_factory=list)
    bad_target: Target | None = None
    plain: bool = True
    learning_rate: float = 0.02


def _points(count: int, seed: int) -> list[list[float]]:
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(seed)).tolist()


def _ids(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"example_id": f"example-{number:02d}", **row} for number, row in enumerate(rows)]


def _network(outputs: int) -> Callable[[int], nn.Module]:
    return lambda seed: seeded(lambda: nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, outputs)), seed)


def _sentence(draw: random.Random, label: str) -> str:
    words = draw.choices(FILLERS, k=draw.randint(2, 6)) + draw.choices(WORDS[label], k=draw.randint(1, 2))
    draw.shuffle(words)
    return " ".join(words)


def _entities(text: str) -> list[dict[str, Any]]:
    found, start = [], 0
    for word in text.split(" "):
        for label, name in zip(WORDS, ("blame", "praise"), strict=True):
            if word in WORDS[label]:
                found.append({"start": start, "end": start + len(word), "label": name})
        start += len(word) + 1
    return found


def vectors(folder: Path) -> Toy:
    rows = [{"x": x, "label": int(x[0] > 0) + int(x[1] > 0)} for x in _points(24, 0)]
    return Toy("vectors", Vectors(), _network(3), _ids(rows), [{"x": x} for x in _points(4, 1)])


def text(folder: Path) -> Toy:
    draw = random.Random(0)
    rows = [{"text": _sentence(draw, label), "label": label} for label in draw.choices(LABELS, k=20)]
    return Toy(
        "text",
        TextClassification(make_tokenizer(), LABELS),
        lambda seed: small_bert(BertForSequenceClassification, 2, seed),
        _ids(rows),
        [{"text": _sentence(draw, label)} for label in LABELS],
        list(LABELS),
        "neutral",
        plain=False,
    )


def pairs(folder: Path) -> Toy:
    draw, rows = random.Random(1), []
    for _ in range(20):
        first, second = draw.choices(LABELS, k=2)
        label = "same" if first == second else "other"
        rows.append({"premise": _sentence(draw, first), "hypothesis": _sentence(draw, second), "label": label})
    return Toy(
        "pairs",
        Pairs(make_tokenizer(), ["same", "other"]),
        lambda seed: small_bert(BertForSequenceClassification, 2, seed),
        _ids(rows),
        [
            {"premise": "the film is good", "hypothesis": "a dull plot"},
            {"premise": "sad", "hypothesis": "a weak scene"},
        ],
        ["same", "other"],
        "neither",
        plain=False,
    )


def multi_label(folder: Path) -> Toy:
    names = MultiLabel.names
    rows = [
        {
            "x": x,
            "properties": [name for name, there in zip(names, (x[0] < 0, x[1] > 0, x[2] > 1), strict=True) if there],
        }
        for x in _points(24, 2)
    ]
    queries = [{"x": x} for x in _points(4, 3)]
    return Toy("multi-label", MultiLabel(), _network(3), _ids(rows), queries, [{"label": "left"}, "far"], "near")


def regression(folder: Path) -> Toy:
    rows = [{"x": x, "height": x[0] - 0.5 * x[1] ** 2} for x in _points(24, 4)]
    return Toy("regression", Regression(), _network(1), _ids(rows), [{"x": x} for x in _points(4, 5)])


def tokens(folder: Path) -> Toy:
    draw = random.Random(2)
    texts = [_sentence(draw, label) for label in draw.choices(LABELS, k=20)]
    queries = [{"text": "the good film is very dull"}, {"text": "a story with the actor"}]
    return Toy(
        "tokens",
        Entities(make_tokenizer()),
        lambda seed: small_bert(BertForTokenClassification, 3, seed),
        _ids([{"text": one, "entities": _entities(one)} for one in texts]),
        queries,
        [{"span": [4, 8], "label": "blame"}, {"span": [0, 3], "label": "O"}],
        {"span": [4, 8], "label": "person"},
        plain=False,
        learning_rate=0.003,
    )


def images(folder: Path) -> Toy:
    draw, rows = torch.Generator().manual_seed(6), []
    for number in range(20):
        label = Images.names[number % 2]
        pixels = torch.rand(1, 6, 6, generator=draw) * 0.7 + (0.3 if label == "bright" else 0.0)
        path = folder / f"{number}.npy"
        np.save(path, pixels.numpy())
        rows.append({"image": str(path), "label": label})

    def network() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(4, 4, 3, stride=2),
            nn.Tanh(),
            nn.Flatten(),
            nn.Linear(16, 2),
        )

    queries = [{"image": rows[0]["image"]}, {"image": rows[1]["image"]}]
    return Toy(
        "images", Images(), lambda seed: seeded(network, seed), _ids(rows[2:]), queries, ["dark", "bright"], "grey"
    )


def language(folder: Path) -> Toy:
    draw, rows = random.Random(3), []
    for _ in range(20):
        label = draw.choice(LABELS)
        rows.append({"prompt": _sentence(draw, label), "answer": f"very {draw.choice(WORDS[label])}"})

    def model(seed: int) -> nn.Module:
        config = LlamaConfig(
            vocab_size=24,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=32,
            tie_word_embeddings=False,
            attn_implementation="eager",
        )
        return seeded(lambda: LlamaForCausalLM(config), seed)

    queries = [{"prompt": "the film is", "answer": "good"}, {"prompt": "a sad plot is", "answer": "very dull"}]
    targets: list[Target] = [{"answer": "good fun"}, {"answer": "bad"}]
    return Toy(
        "language",
        Language(make_tokenizer()),
        model,
        _ids(rows),
        queries,
        targets,
        "good",
        plain=False,
        learning_rate=0.005,
    )


TOYS: dict[str, Callable[[Path], Toy]] = {
    "vectors": vectors,
    "text": text,
    "pairs": pairs,
    "multi-label": multi_label,
    "regression": regression,
    "tokens": tokens,
    "images": images,
    "language": language,
}
