"""A project with tasks that are no classification of one text: two texts, a number, spans; as a user would write it."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

from transformers import BertModel

from tests.audit_service.conftest import BAD, GOOD, THINGS
from tests.small_models import small_bert, tokenizer_for

MODULE = '''
"""Tasks of this project."""

import torch
from torch.nn import functional

from influence_engine.errors import InputError
from influence_engine.tasks import ExampleField, Head, Projection


def log_odds(logits, targets):
    named = targets.clamp_min(0).unsqueeze(-1)
    others = logits.scatter(-1, named, float("-inf")).logsumexp(-1)
    return (logits.gather(-1, named).squeeze(-1) - others) * (targets >= 0)


class Pairs:
    """Whether two sentences are of one mind."""

    names = ("agree", "differ")
    fields = (
        ExampleField("premise", "text"),
        ExampleField("hypothesis", "text"),
        ExampleField("relation", "label", "target", names),
    )

    def __init__(self, processor):
        self.processor = processor

    def head(self):
        return Head("AutoModelForSequenceClassification", {"num_labels": 2}, 2)

    def check(self, example, *, labelled):
        for name in ("premise", "hypothesis"):
            if not isinstance(example.get(name), str) or not example[name].strip():
                raise InputError(f"{name!r} must be a sentence", field=name)
        label = example.get("relation")
        if (labelled or label is not None) and label not in self.names:
            raise InputError(f"there is no relation {label!r}", field="relation")

    def collate(self, examples):
        pairs = [example["premise"] + " [SEP] " + example["hypothesis"] for example in examples]
        encoded = self.processor(pairs, padding=True, return_tensors="pt", return_token_type_ids=False)
        labels = [self.names.index(one["relation"]) if one.get("relation") else -1 for one in examples]
        return {**encoded, "labels": torch.tensor(labels)}

    def model_inputs(self, batch):
        return {name: batch[name] for name in ("input_ids", "attention_mask")}

    def outputs(self, model, batch):
        return model(**self.model_inputs(batch)).logits

    def loss(self, outputs, batch):
        return functional.cross_entropy(outputs, batch["labels"], reduction="none")

    def measurement(self, outputs, batch):
        return log_odds(outputs, batch["labels"])

    def probability(self, measurement):
        return measurement.sigmoid()

    def predictions(self, outputs, batch):
        shares = outputs.detach().softmax(-1).tolist()
        return [
            {"label": self.names[row.index(max(row))], "confidence": max(row), "scores": dict(zip(self.names, row))}
            for row in shares
        ]


class Ratings:
    """How many stars a sentence gives; not exported, and without a probability or a label."""

    measurement_unit = "stars"

    def __init__(self, processor, longest=32):
        self.processor, self.longest = processor, longest

    @property
    def fields(self):
        return (
            ExampleField("review", "text"),
            ExampleField("weight", "number"),
            ExampleField("stars", "number", "target"),
        )

    def head(self):
        return Head("AutoModelForSequenceClassification", {"num_labels": 1}, 1)

    def collate(self, examples):
        encoded = self.processor(
            [example["review"] for example in examples],
            padding=True, truncation=True, max_length=self.longest, return_tensors="pt", return_token_type_ids=False,
        )
        weights = [float(example["weight"]) for example in examples]
        stars = [float(example.get("stars", 0.0)) for example in examples]
        return {**encoded, "weights": torch.tensor(weights), "stars": torch.tensor(stars)}

    def outputs(self, model, batch):
        return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits

    def loss(self, outputs, batch):
        return batch["weights"] * (outputs.squeeze(-1) - batch["stars"]).square() / 2

    def measurement(self, outputs, batch):
        return outputs.squeeze(-1)

    def predictions(self, outputs, batch):
        return [{"stars": row[0]} for row in outputs.detach().tolist()]


class Spans:
    """Which words praise or blame; what is explained is a span as a label."""

    names = ("O", "blame", "praise")

    def __init__(self, processor):
        self.processor = processor

    @property
    def fields(self):
        return ExampleField("review", "text"), ExampleField("opinions", "spans", "target", self.names[1:])

    def head(self):
        return Head("AutoModelForTokenClassification", {"num_labels": 3}, 3)

    def collate(self, examples):
        encoded = self.processor(
            [example["review"] for example in examples],
            padding=True, return_offsets_mapping=True, return_tensors="pt", return_token_type_ids=False,
        )
        mask, offsets = encoded["attention_mask"], encoded["offset_mapping"]
        labels = torch.where(mask > 0, 0, -100)
        targets = torch.full_like(labels, -100)
        for row, example in enumerate(examples):
            for span in example.get("opinions", ()):
                labels[row][self._within(offsets[row], span["start"], span["end"])] = self.names.index(span["label"])
            target = example.get("target")
            if target is None:
                targets[row][mask[row] > 0] = -1
            else:
                targets[row][self._within(offsets[row], *target["span"])] = self.names.index(target["label"])
        return {**encoded, "labels": labels, "targets": targets}

    def outputs(self, model, batch):
        return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits

    def loss(self, outputs, batch):
        losses = functional.cross_entropy(outputs.transpose(1, 2), batch["labels"], ignore_index=-100, reduction="none")
        return losses.sum(-1)

    def measurement(self, outputs, batch):
        return log_odds(outputs, batch["targets"]).sum(-1)

    def probability(self, measurement):
        return measurement.sigmoid()

    def choose_targets(self, outputs, batch):
        predicted, targets = outputs.argmax(-1), batch["targets"]
        asked = targets == -1
        found = asked & (predicted > 0)
        wanted = torch.where(found.any(-1, keepdim=True), found, asked)
        return {**batch, "targets": torch.where(asked, torch.where(wanted, predicted, -100), targets)}

    def targets(self, batch):
        return [{"opinions": self._said(*one)} for one in zip(batch["offset_mapping"], batch["targets"])]

    def aim(self, example, target):
        if not isinstance(target, dict) or target.get("label") not in self.names or "span" not in target:
            raise InputError("a target is a span and a label", field="target")
        return {**example, "target": target}

    def predictions(self, outputs, batch):
        predicted = torch.where(batch["labels"] == -100, -100, outputs.detach().argmax(-1))
        return [{"opinions": self._said(*one)} for one in zip(batch["offset_mapping"], predicted)]

    def project(self, prediction):
        return Projection(", ".join(sorted({one["label"] for one in prediction["opinions"]})) or "none", None)

    def _within(self, offsets, start, end):
        return (offsets[:, 0] >= start) & (offsets[:, 1] <= end) & (offsets[:, 1] > offsets[:, 0])

    def _said(self, offsets, labels):
        return [
            {"start": int(start), "end": int(end), "label": self.names[number]}
            for (start, end), number in zip(offsets.tolist(), labels.tolist())
            if number > 0
        ]
'''

CONFIG = """
task: {{type: "tasks_of_this_project:{task}"}}
base_model: {{path: base}}
data:
  train: {{jsonl: {name}.jsonl, part: train}}
  validation: {{jsonl: {name}.jsonl, columns: {{id: id}}, limit: 40, seed: 3}}
finetune: {{epochs: 1, batch_size: 16, learning_rate: 3e-3, warmup_ratio: 0}}
index: {{dimensions: 64, approximation: {approximation}}}
"""

TASKS = {"pairs": ("Pairs", "unrolled"), "ratings": ("Ratings", "final"), "spans": ("Spans", "final")}
"""Class and approximation of the index, by the name of the config."""


def rows() -> dict[str, list[dict[str, object]]]:
    """144 rows for each task."""
    chosen = list(itertools.product(range(3), THINGS, zip(BAD, GOOD, strict=True), (0, 1)))
    pairs, ratings, spans = [], [], []
    for number, (form, thing, words, good) in enumerate(chosen):
        word = words[good]
        review = (f"the {thing} is {word}", f"what a {word} {thing}", f"a {word} {thing} after all")[form]
        row = {"id": f"r{number}", "source": ("web", "paper")[number % 2]}
        other = words[form % 2]
        pairs.append(
            {
                **row,
                "premise": review,
                "hypothesis": f"the {thing} is {other}",
                "relation": "agree" if other == word else "differ",
            }
        )
        ratings.append({**row, "review": review, "weight": 1.0, "stars": 2.0 * good - 1.0})
        start = review.index(word)
        opinions = [{"start": start, "end": start + len(word), "label": ("blame", "praise")[good]}]
        spans.append({**row, "review": review, "opinions": opinions})
    return {"pairs": pairs, "ratings": ratings, "spans": spans}


def make_project(folder: Path) -> None:
    """Module, base model, data and configs."""
    (folder / "tasks_of_this_project.py").write_text(MODULE)
    (folder / "configs").mkdir()
    for name, examples in rows().items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(example) + "\n" for example in examples))
        task, approximation = TASKS[name]
        config = CONFIG.format(task=task, name=name, approximation=approximation)
        (folder / "configs" / f"{name}.yaml").write_text(config)
    tokenizer = tokenizer_for([str(one["premise"]) for one in rows()["pairs"]])
    sizes = {"num_hidden_layers": 1, "intermediate_size": 32, "max_position_embeddings": 48}
    dropout = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    base = small_bert(BertModel, vocab_size=len(tokenizer), **sizes, **dropout)
    base.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
