"""Is fine-tuning worth it? The solar cells demo's model beside simple baselines, on cells of modules it has not seen.

    python benchmarks/picture_quality.py    a minute; the demo's model must be there: bento-audit finetune solar_cells

The baselines are fitted on the same photographs: logistic regression on the frozen base model's pooled features (a
linear probe) and on 40 x 40 pixels, each at the weight decay that is best for it on the held-out cells, which favours
them. The area under the ROC curve is over all held-out cells, those of validation and test.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from support import machine, parser_of, show
from torch import Tensor, nn
from torch.nn import functional

from audit_service.config import load_config
from audit_service.workspace import Workspace
from influence_engine.tasks import Example, Task

DECAYS = (1e-3, 1e-2, 1e-1, 1.0)
AT_ONCE = 8
PIXELS = 40


def parser() -> argparse.ArgumentParser:
    """The options."""
    return parser_of(__doc__)


def main() -> None:
    """Measures and prints."""
    options = parser().parse_args()
    workspace = Workspace(load_config("solar_cells"))
    train, held_out = workspace.train, [*workspace.held_out, *workspace.test]
    truth = _defective(held_out)
    model, base = workspace.run.load_model(), workspace.run.load_base()
    tuned = margins(model, workspace.task, held_out)
    probes = {
        "linear probe on the frozen base": (
            pooled(base, workspace.task, train),
            pooled(base, workspace.task, held_out),
        ),
        "logistic regression on pixels": (pixels(workspace.task, train), pixels(workspace.task, held_out)),
    }
    rows: list[dict[str, Any]] = [_row("fine-tuned", tuned, truth)]
    for name, (own, others) in probes.items():
        scores = [logistic(own, _defective(train), others, decay) for decay in DECAYS]
        rows.append(_row(name, max(scores, key=lambda one: auc(one, truth)), truth))
    about = {"training examples": len(train), "held out": len(held_out), "of them defective": int(truth.sum())}
    show({"machine": machine(), **about, "held_out_cells": rows}, options)


def auc(scores: Tensor, truth: Tensor) -> float:
    """Share of pairs of a defective and a sound cell that are in the right order."""
    apart = scores[truth == 1].unsqueeze(1) - scores[truth == 0].unsqueeze(0)
    return float((apart > 0).double().mean() + 0.5 * (apart == 0).double().mean())


def margins(model: nn.Module, task: Task, examples: Sequence[Example]) -> Tensor:
    """Log-odds of ``defective``, ``[N]``."""
    with torch.no_grad():
        found = [task.outputs(model, task.collate(some)) for some in _blocks(examples)]
    return torch.cat([one[:, 1] - one[:, 0] for one in found])


def pooled(model: Any, task: Task, examples: Sequence[Example]) -> Tensor:
    """Means of the last feature maps, ``[N, channels]``."""
    with torch.no_grad():
        batches = [task.collate(some)["pixel_values"] for some in _blocks(examples)]
        return torch.cat([model.efficientnet_lite(batch).pooler_output for batch in batches])


def pixels(task: Task, examples: Sequence[Example]) -> Tensor:
    """Shades of grey of a small picture, ``[N, PIXELS * PIXELS]``."""
    found = [task.collate(some)["pixel_values"][:, :1] for some in _blocks(examples)]
    return torch.cat([functional.adaptive_avg_pool2d(one, PIXELS).flatten(1) for one in found])


def logistic(own: Tensor, labels: Tensor, others: Tensor, decay: float) -> Tensor:
    """Log-odds of ``others`` by logistic regression on standardised features."""
    mean, scale = own.mean(0), own.std(0) + 1e-3
    inputs, asked = (torch.cat([(one - mean) / scale, torch.ones(len(one), 1)], 1) for one in (own, others))
    weights = torch.zeros(inputs.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=200)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = functional.binary_cross_entropy_with_logits(inputs @ weights, labels.float())
        loss = loss + decay * weights[:-1].pow(2).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)
    return (asked @ weights).detach()


def _row(name: str, scores: Tensor, truth: Tensor) -> dict[str, Any]:
    right = float(((scores > 0).long() == truth).double().mean())
    return {"model": name, "area_under_roc": f"{auc(scores, truth):.3f}", "right": f"{right:.3f}"}


def _defective(examples: Sequence[Example]) -> Tensor:
    return torch.from_numpy(np.array([one["label"] == "defective" for one in examples], dtype=np.int64))


def _blocks(examples: Sequence[Example]) -> list[list[Example]]:
    return [list(examples[start : start + AT_ONCE]) for start in range(0, len(examples), AT_ONCE)]


if __name__ == "__main__":
    main()
