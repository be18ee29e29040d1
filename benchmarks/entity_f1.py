"""F1 of the entities that a config's model finds in its test examples, beside a gazetteer of the training mentions.

    python benchmarks/entity_f1.py entities

An entity counts as found where its span and its type are right, as in the CoNLL shared tasks (Tjong Kim Sang and De
Meulder 2003). The gazetteer takes, from left to right, the longest run of words that is a mention somewhere in the
training examples, and calls it what it is called most often there.
"""

from __future__ import annotations

import argparse
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from support import machine, parser_of, show

from audit_service.config import load_config
from audit_service.workflows.finetuning import run_finetuning
from audit_service.workspace import Workspace
from influence_engine.tasks import batches_of_like_size, predictions_of, target_name

Span = tuple[int, int, str]


def spans(entities: Sequence[Mapping[str, Any]]) -> set[Span]:
    return {(one["start"], one["end"], one["label"]) for one in entities}


def f1(true: Sequence[set[Span]], found: Sequence[set[Span]], label: str | None = None) -> float:
    """Of all types, or of one."""
    pairs = [
        tuple({one for one in spans if label in (None, one[2])} for spans in pair)
        for pair in zip(true, found, strict=True)
    ]
    right = sum(len(known & guessed) for known, guessed in pairs)
    return 2 * right / max(1, sum(len(known) + len(guessed) for known, guessed in pairs))


def predicted(workspace: Workspace) -> list[set[Span]]:
    task, model, found = workspace.task, workspace.run.load_model().eval(), dict[int, set[Span]]()
    for places in batches_of_like_size(task, workspace.test, 32):
        batch = task.collate([workspace.test[place] for place in places])
        with torch.no_grad():
            predictions = predictions_of(task, task.outputs(model, batch), batch)
        found |= {place: spans((one or {})["entities"]) for place, one in zip(places, predictions, strict=True)}
    return [found[place] for place in range(len(workspace.test))]


def gazetteer(train: Sequence[Mapping[str, Any]], field: str) -> Callable[[str], set[Span]]:
    known: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
    for example in train:
        for one in example[field]:
            known[tuple(example["text"][one["start"] : one["end"]].split())][one["label"]] += 1
    longest = max(map(len, known))

    def find(text: str) -> set[Span]:
        words, starts = text.split(), [0]
        for word in words:
            starts.append(starts[-1] + len(word) + 1)
        found, first = set(), 0
        while first < len(words):
            lengths = range(min(longest, len(words) - first), 0, -1)
            length = next((one for one in lengths if tuple(words[first : first + one]) in known), 0)
            if length:
                ((label, _),) = known[tuple(words[first : first + length])].most_common(1)
                found.add((starts[first], starts[first + length] - 1, label))
            first += max(1, length)
        return found

    return find


def parser() -> argparse.ArgumentParser:
    """The options."""
    found = parser_of(__doc__)
    found.add_argument("config", nargs="?", default="entities")
    return found


def main() -> None:
    """Fine-tunes, unless that has been done, and prints."""
    options = parser().parse_args()
    workspace = Workspace(load_config(options.config))
    run_finetuning(workspace)
    field = target_name(workspace.task)
    true, model = [spans(one[field]) for one in workspace.test], predicted(workspace)
    find = gazetteer(workspace.train, field)
    looked_up = [find(one["text"]) for one in workspace.test]
    rows = [
        {
            "type": label or "all",
            "model": round(f1(true, model, label), 3),
            "gazetteer": round(f1(true, looked_up, label), 3),
            "mentions": sum(label in (None, one[2]) for known in true for one in known),
        }
        for label in (None, *sorted({one[2] for known in true for one in known}))
    ]
    show({"machine": machine(), "training": len(workspace.train), "test": len(workspace.test), "f1": rows}, options)


if __name__ == "__main__":
    main()
