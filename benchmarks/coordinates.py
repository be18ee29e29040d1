"""How much of the exact influence survives the index's two approximations, on a fine-tuned MiniLM.

    python benchmarks/coordinates.py                  fine-tunes 500 snippets first (minutes)

Reference: the exact damped GGN influence (dual form) of 500 training snippets on 64 held-out ones, with Adam's full
preconditioner and the recorded damping. Against it, as the mean over queries of the correlation across examples:

* the rank-one form of the preconditioner, nothing else changed;
* layer coordinates chosen by energy, and random two-sided Gaussian projections of the same number, preconditioned so;
* gradients without any curvature (their dot product).
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from support import machine, parser_of, show
from torch import Tensor
from work import base_and_task, snippets

from influence_engine import FinetuneSettings, Run, TextClassification, finetune
from influence_engine.curvature import adam_preconditioner, influence_from_products, recorded_damping
from influence_engine.gradients import LayerGradient, TrackedLayers, tracing, track
from influence_engine.gradients.coordinates import EnergyFit, LayerProjection
from influence_engine.index.encoding.encoder import LayerCoordinates
from influence_engine.tasks import Example

Batches = list[tuple[list[int], dict[str, LayerGradient]]]


class Problem:
    """Pull-backs ``J^T u`` of every snippet along the one direction ``u`` that two logits have, and their weights.

    ``g_i = loss_i J_i^T u`` and the GGN row is ``root_i J_i^T u``; a query's measurement gradient is ``sqrt(2) J^T u``
    up to its sign, which no correlation sees.
    """

    def __init__(
        self, run: Run, task: TextClassification, train: Sequence[Example], queries: Sequence[Example]
    ) -> None:
        self.model = run.load_model()
        self.tracked: TrackedLayers = track(self.model)
        self.count = len(train)
        data = [*train, *queries]
        direction = torch.tensor([-1.0, 1.0]) / 2**0.5
        outputs, labels = torch.zeros(len(data), 2), torch.zeros(len(data), dtype=torch.long)
        self.batches: Batches = []
        order = sorted(range(len(data)), key=lambda number: len(data[number]["text"]))
        for start in range(0, len(order), 25):
            chosen = order[start : start + 25]
            with tracing(self.model, task, self.tracked.layers, task.collate([data[i] for i in chosen])) as trace:
                self.batches.append((chosen, trace.gradients_along(trace.outputs, direction.expand_as(trace.outputs))))
                outputs[chosen], labels[chosen] = trace.outputs.detach(), trace.batch["labels"]
        p = outputs[: self.count].double().softmax(-1)
        self.root = (2 * p[:, 0] * p[:, 1]).sqrt()
        self.loss = (p - torch.nn.functional.one_hot(labels[: self.count], 2)) @ direction.double()
        self.size = len(data)

    def gram(self, rows: Callable[[str], Tensor]) -> Tensor:
        """Products of all pull-backs, summed over layers; ``rows(layer)`` gives them as ``[all, numbers]``."""
        total = torch.zeros(self.size, self.size, dtype=torch.float64)
        for layer in self.tracked.layers:
            each = rows(layer.name)
            total += (each @ each.T).double()
        return total

    def dense(self, name: str, scale: Tensor) -> Tensor:
        """One layer's pull-backs times ``scale``, as ``[all, d0 d1]``."""
        result = torch.zeros(self.size, scale.numel())
        for chosen, gradients in self.batches:
            result[chosen] = (gradients[name].dense() * scale).flatten(1)
        return result

    def influence(self, gram: Tensor, damping: float) -> Tensor:
        """Damped GGN influence from the products, ``[Q, N]``."""
        n = self.count
        root, loss = self.root / n**0.5, self.loss / n
        train, queries = gram[:n, :n], gram[n:, :n]
        rows = root[:, None] * train
        return influence_from_products(rows * root, rows * loss, queries * root, queries * loss, damping=damping)

    def fit(self, preconditioner: Mapping[str, Any], budget: int) -> LayerCoordinates:
        """Coordinates by energy, as the index fits them."""
        fit = EnergyFit()
        weights = torch.zeros(self.size)
        weights[: self.count] = (self.root.pow(2) + self.loss.pow(2)).sqrt().float()
        for chosen, gradients in self.batches:
            for name, gradient in gradients.items():
                fit.add(name, preconditioner[name].apply(gradient).times(weights[chosen]))
        return LayerCoordinates(preconditioner, fit.projections(budget))

    def blind(self, preconditioner: Mapping[str, Any], budget: int) -> LayerCoordinates:
        """Gaussian projections of both sides, the same for every layer, about ``budget`` numbers in all."""
        generator = torch.Generator().manual_seed(0)
        side = int((budget / len(self.tracked.layers)) ** 0.5)
        projections = {}
        for layer in self.tracked.layers:
            sides = [torch.randn(d, min(side, d), generator=generator) / min(side, d) ** 0.5 for d in layer.shape]
            projections[layer.name] = LayerProjection(sides[0], sides[1])
        return LayerCoordinates(preconditioner, projections)

    def projected(self, coordinates: LayerCoordinates) -> Tensor:
        """Products of all pull-backs seen through coordinates."""
        rows = torch.zeros(self.size, coordinates.size)
        for chosen, gradients in self.batches:
            rows[chosen] = coordinates(gradients)
        return (rows @ rows.T).double()


def agreement(found: Tensor, reference: Tensor) -> float:
    """Mean over queries of the correlation across training examples."""
    pairs = [torch.corrcoef(torch.stack([a, b]))[0, 1] for a, b in zip(found, reference, strict=True)]
    return round(float(torch.stack(pairs).mean()), 4)


def parser() -> argparse.ArgumentParser:
    """The options."""
    found = parser_of(__doc__)
    found.add_argument("--examples", type=int, default=500)
    return found


def main() -> None:
    """Measures and prints."""
    options = parser().parse_args()
    base, task = base_and_task()
    train, queries = snippets(task, "movies", options.examples, "train"), snippets(task, "movies", 64, "test")
    settings = FinetuneSettings(trainable=2, epochs=4, batch_size=32, learning_rate=2e-4)
    with tempfile.TemporaryDirectory() as name:
        finetune(task, base, train, settings=settings, record_to=Path(name) / "run")
        run = Run.open(Path(name) / "run")
        moments, epsilon = run.second_moments(), run.epsilon or 0.0
        damping = recorded_damping(run.learning_rates * run.clip_factors.nan_to_num(1.0))
        problem = Problem(run, task, train, queries)
    assert moments is not None
    full = {name: (v + epsilon**2).pow(-0.25) for name, v in problem.tracked.matrices(moments).items()}
    preconditioner = adam_preconditioner(problem.tracked, moments, epsilon)
    rank_one = {name: m.row[:, None] * m.column for name, m in preconditioner.items()}
    reference = problem.influence(problem.gram(lambda name: problem.dense(name, full[name])), damping)
    products = problem.gram(lambda name: problem.dense(name, rank_one[name]))
    report: dict[str, Any] = {
        "machine": machine(),
        "examples": options.examples,
        "damping": damping,
        "rank_one_metric": agreement(problem.influence(products, damping), reference),
        "no_curvature": agreement(-products[problem.count :, : problem.count] * problem.loss, reference),
    }
    for budget in (4096, 8192, 16384, 32768):
        report[f"{budget} coordinates"] = {
            kind: agreement(problem.influence(problem.projected(make(preconditioner, budget)), damping), reference)
            for kind, make in (("by energy", problem.fit), ("blind", problem.blind))
        }
    show(report, options)


if __name__ == "__main__":
    main()
