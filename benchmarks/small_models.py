"""What an index of a small model costs against training it: a perceptron and a LeNet on drawn digits.

    python benchmarks/small_models.py                              both models, indexed with the defaults and `final`
    python benchmarks/small_models.py --model lenet --only final   one of each
    python benchmarks/small_models.py --subsets 40                 also how well it predicts as many real retrainings
    python benchmarks/small_models.py --scores FOLDER              keeps the scores; where there are some, compares

Digits are drawn from a font of 5 by 7 points, moved, dimmed, with noise, and a tenth of the labels is wrong. The
perceptron has 6,666 parameters, 800 digits of 8 by 8 and ten classes, trained by SGD with momentum in 192 steps; LeNet
has 44,426, 1,120 digits of 28 by 28, trained by AdamW in 350 steps. Seconds are by stage as the build reports them, and
as a ratio to the training that was recorded, in the same process. Every stage is from its first report to the next
stage's first, so that decompositions count with the stage that they end.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from support import machine, parser_of, show
from torch import Tensor, nn
from torch.nn import functional

from influence_engine import Attributor, FinetuneSettings, IndexSettings, InfluenceIndex, Run, finetune
from influence_engine.evaluation import Retraining, linear_datamodeling_score, membership, random_removals
from influence_engine.tasks import Batch, Example

FONT = (
    ("01110", "10001", "10011", "10101", "11001", "10001", "01110"),
    ("00100", "01100", "00100", "00100", "00100", "00100", "01110"),
    ("01110", "10001", "00001", "00010", "00100", "01000", "11111"),
    ("11111", "00010", "00100", "00010", "00001", "10001", "01110"),
    ("00010", "00110", "01010", "10010", "11111", "00010", "00010"),
    ("11111", "10000", "11110", "00001", "00001", "10001", "01110"),
    ("00110", "01000", "10000", "11110", "10001", "10001", "01110"),
    ("11111", "00001", "00010", "00100", "01000", "01000", "01000"),
    ("01110", "10001", "10001", "01110", "10001", "10001", "01110"),
    ("01110", "10001", "10001", "01111", "00001", "00010", "01100"),
)
NOISE, WRONG = 0.15, 0.1
FRACTION = 0.05


class Digits:
    """Classifies square images of digits.

    Args:
        flat: Whether the model takes vectors instead of images.
    """

    def __init__(self, *, flat: bool) -> None:
        self.flat = flat

    def collate(self, examples: Sequence[Example]) -> Batch:
        pixels = torch.stack([torch.as_tensor(example["pixels"]) for example in examples])
        side = round(pixels.shape[1] ** 0.5)
        return {
            "x": pixels if self.flat else pixels.view(-1, 1, side, side),
            "labels": torch.tensor([example.get("label", -1) for example in examples]),
        }

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        found: Tensor = model(batch["x"])
        return found

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        return functional.cross_entropy(outputs, batch["labels"], reduction="none")

    def measurement(self, outputs: Tensor, batch: Batch) -> Tensor:
        chosen = batch["labels"].unsqueeze(-1)
        others = outputs.scatter(-1, chosen, float("-inf"))
        return outputs.gather(-1, chosen).squeeze(-1) - others.logsumexp(-1)

    def describe(self) -> dict[str, Any]:
        return {"type": "drawn digits", "flat": self.flat}


def drawn(count: int, side: int, *, seed: int, prefix: str) -> list[dict[str, Any]]:
    """So many digits of ``side`` by ``side`` points, a tenth of them with a wrong label."""
    generator = torch.Generator().manual_seed(seed)
    shapes = torch.tensor([[[float(point) for point in line] for line in digit] for digit in FONT])
    height = side if side < 16 else side - 8
    large = functional.interpolate(shapes.unsqueeze(1), (height - 1, (height - 1) * 5 // 7), mode="bilinear")[:, 0]
    _, rows, columns = large.shape
    labels = torch.randint(0, 10, (count,), generator=generator)
    images = NOISE * torch.randn(count, side, side, generator=generator)
    for image, label in zip(images, labels, strict=True):
        top, left = (int(torch.randint(0, side - size + 1, (), generator=generator)) for size in (rows, columns))
        bright = 0.5 + 0.5 * float(torch.rand((), generator=generator))
        image[top : top + rows, left : left + columns] += bright * large[label]
    wrong = torch.rand(count, generator=generator) < WRONG
    moved = torch.randint(1, 10, (count,), generator=generator)
    given = torch.where(wrong, (labels + moved) % 10, labels)
    return [
        {"example_id": f"{prefix}{number:04d}", "pixels": images[number].flatten().tolist(), "label": int(label)}
        for number, label in enumerate(given)
    ]


def perceptron() -> nn.Module:
    """Of 6,666 parameters."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 52), nn.Tanh(), nn.Linear(52, 52), nn.Tanh(), nn.Linear(52, 10))


def lenet() -> nn.Module:
    """Of 44,426 parameters (LeCun et al. 1998, without its partial connections)."""
    torch.manual_seed(0)
    convolutions = [nn.Conv2d(1, 6, 5), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(6, 16, 5), nn.Tanh(), nn.AvgPool2d(2)]
    dense = [nn.Linear(256, 120), nn.Tanh(), nn.Linear(120, 84), nn.Tanh(), nn.Linear(84, 10)]
    return nn.Sequential(*convolutions, nn.Flatten(), *dense)


@dataclass(frozen=True)
class Case:
    """A model with its data and training."""

    network: Callable[[], nn.Module]
    task: Digits
    examples: int
    side: int
    settings: FinetuneSettings


CASES = {
    "perceptron": Case(
        perceptron,
        Digits(flat=True),
        800,
        8,
        FinetuneSettings(optimizer="sgd", learning_rate=0.3, epochs=12, batch_size=50, weight_decay=0.0),
    ),
    "lenet": Case(
        lenet,
        Digits(flat=False),
        1_120,
        28,
        FinetuneSettings(optimizer="adamw", learning_rate=5e-3, epochs=10, batch_size=32),
    ),
}


class Stages:
    """Seconds by stage, from what a build reports."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._stage, self._since = "beginning", time.perf_counter()

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        if stage != self._stage:
            self.end(stage)

    def end(self, following: str = "") -> dict[str, float]:
        """Seconds by stage, the present one included."""
        now = time.perf_counter()
        self.seconds[self._stage] = self.seconds.get(self._stage, 0.0) + now - self._since
        self._stage, self._since = following, now
        return {stage: round(seconds, 2) for stage, seconds in self.seconds.items()}


def parser() -> argparse.ArgumentParser:
    """The options."""
    found = parser_of(__doc__)
    found.add_argument("--model", choices=tuple(CASES), action="append")
    found.add_argument("--only", choices=("auto", "final"), action="append", dest="approximations")
    found.add_argument("--queries", type=int, default=64)
    found.add_argument("--subsets", type=int, default=0, help="retrainings without 5%% that the scores are judged by")
    found.add_argument("--scores", type=Path, help="a folder to keep the scores in, or to compare them with")
    return found


def main() -> None:
    """Measures and prints."""
    options = parser().parse_args()
    for name in options.model or CASES:
        show({"machine": machine(), **measured(name, CASES[name], options)}, options)


def measured(name: str, case: Case, options: argparse.Namespace) -> dict[str, Any]:
    """Training and indexing of one model."""
    train = drawn(case.examples, case.side, seed=1, prefix="train-")
    queries = drawn(options.queries, case.side, seed=2, prefix="query-")
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        run = finetune(case.task, case.network(), train, queries, case.settings, record_to=Path(folder) / "run")
        training = time.perf_counter() - started
        report: dict[str, Any] = {
            "model": name,
            "parameters": sum(tensor.numel() for tensor in case.network().parameters()),
            "examples": case.examples,
            "steps": len(run.schedule),
            "validation": run.validation,
            "training_s": round(training, 2),
        }
        retraining = Retraining(run, case.task, train, queries, Path(folder) / "retrained", into=case.network())
        for approximation in options.approximations or ("auto", "final"):
            settings = IndexSettings(approximation=approximation)
            attributor, taken = indexed(case, run, train, Path(folder) / approximation, settings)
            scores = attributor.scores(queries)
            seconds = sum(taken.values())
            report[approximation] = {
                "seconds": round(seconds, 2),
                "ratio_to_training": round(seconds / training, 2),
                "predicted_s": round(predicted(case, run, train, settings), 2),
                "numbers_an_example": attributor.index.manifest.dimensions,
                "influence_kept": attributor.index.manifest.influence_kept,
                "stages": taken,
            }
            if options.subsets:
                removals = random_removals(attributor.index.example_ids, FRACTION, options.subsets, seed=0)
                removed = membership(removals, attributor.index.example_ids)
                score = linear_datamodeling_score(scores, removed, retraining.measurements(removals))
                report[approximation]["lds"] = str(score)
            if options.scores is not None:
                path = options.scores / f"{name}-{approximation}.safetensors"
                report[approximation] |= compared(scores, path)
    return report


def indexed(
    case: Case, run: Run, train: list[dict[str, Any]], folder: Path, settings: IndexSettings
) -> tuple[Attributor, dict[str, float]]:
    """The index, and seconds by stage."""
    stages = Stages()
    index = InfluenceIndex.build_from_run(run, case.task, train, folder, settings, into=case.network(), progress=stages)
    taken = stages.end()
    return Attributor(run.load_model(case.network()), case.task, index), taken


def predicted(case: Case, run: Run, train: list[dict[str, Any]], settings: IndexSettings) -> float:
    """Seconds that the build is planned to take."""
    plan = InfluenceIndex.plan(run.load_model(case.network()), case.task, train, settings, run=run)
    return plan.seconds or 0.0


def compared(scores: Tensor, path: Path) -> dict[str, float]:
    """Correlation with the scores in a file, and the slope on them; where there is no file, makes it."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({"scores": scores.contiguous()}, path)
        return {}
    before, now = (each.double().flatten() for each in (load_file(path)["scores"], scores))
    centred = before - before.mean(), now - now.mean()
    return {
        "correlation_with_kept": float(centred[0] @ centred[1] / (centred[0].norm() * centred[1].norm())),
        "slope_on_kept": float(before @ now / (before @ before)),
        "relative_difference": float((before - now).norm() / before.norm()),
    }


if __name__ == "__main__":
    main()
