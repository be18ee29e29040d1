"""What stands in for the record of a training: its optimiser's metric and its length, from both ends of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from influence_engine.curvature import LayerMetric, Metric, SquaresFit, identity_metric, travelled_damping
from influence_engine.curvature.gradient_passes import GradientPasses
from influence_engine.index.sizes import METRIC_SAMPLE
from influence_engine.index.unrolling.trajectory import matrices_there
from influence_engine.progress import Progress
from influence_engine.resources import to_device
from influence_engine.tasks import Example
from influence_engine.tensor_files import write_tensors

ESTIMATED = "estimating the optimiser's metric"


@dataclass(frozen=True)
class StandIn:
    """What an index of a training without a record goes by.

    Attributes:
        metric: Adam's, estimated from squared gradients at the final weights, or the identity.
        damping: From how far the weights have gone from the base model's and how far the loss has fallen; ``None``
            where the base model is not known or says nothing of it.
    """

    metric: Metric
    damping: float | None


def stand_in(
    passes: GradientPasses,
    examples: Sequence[Example],
    base: nn.Module | None,
    path: Path,
    progress: Progress,
    *,
    adam: bool,
    seed: int,
) -> StandIn:
    """Estimates it from a sample of the training examples, or finds it where an interrupted build has left it.

    Args:
        passes: Run the fine-tuned model.
        examples: The training examples.
        base: The model before fine-tuning, where it is known; moved to the fine-tuned model's device meanwhile.
        path: File to keep it in.
        progress: Told of every batch.
        adam: Whether the metric is to be Adam's.
        seed: Of the sample.
    """
    layers = passes.tracked.layers
    if not path.exists():
        found = passes.within_memory(
            lambda: _estimated(passes, examples, base, progress, adam=adam, seed=seed),
            lambda note: progress(ESTIMATED, 0, METRIC_SAMPLE, note),
        )
        tensors = {"damping": torch.tensor(found.damping or 0.0, dtype=torch.float64)}
        for number, layer in enumerate(layers):
            metric = found.metric[layer.name]
            tensors |= {f"{number}.row": metric.row.cpu(), f"{number}.column": metric.column.cpu()}
        write_tensors(path, tensors)
    kept = load_file(path)
    return StandIn(
        {
            layer.name: LayerMetric(kept[f"{number}.row"], kept[f"{number}.column"])
            for number, layer in enumerate(layers)
        },
        float(kept["damping"]) or None,
    )


def _estimated(
    passes: GradientPasses,
    examples: Sequence[Example],
    base: nn.Module | None,
    progress: Progress,
    *,
    adam: bool,
    seed: int,
) -> StandIn:
    generator = torch.Generator().manual_seed(seed)
    sample = torch.randperm(len(examples), generator=generator)[:METRIC_SAMPLE].tolist()
    squares, task, done, fall = SquaresFit(), passes.task, 0, 0.0
    before = None if base is None else (base.training, next(base.parameters()).device)
    try:
        if base is not None:
            base.eval().to(passes.device)
        for _, batch in passes.grouped(examples, sample):
            with passes.trace(batch) as trace:
                losses = task.loss(trace.outputs, trace.batch)
                gradients = trace.layer_gradients(losses)
            if adam:
                squares.add(gradients, len(batch))
            if base is not None:
                fall += _loss(base, passes, batch) - float(losses.detach().double().sum())
            done += len(batch)
            progress(ESTIMATED, done, len(sample))
        metric = squares.metric(passes.tracked) if adam else identity_metric(passes.tracked)
        damping = None
        if base is not None:
            own, there = matrices_there(passes.tracked, passes.model), matrices_there(passes.tracked, base)
            damping = travelled_damping(fall / len(sample), own, there, metric)
        return StandIn(metric, damping)
    finally:
        if base is not None and before is not None:
            base.train(before[0]).to(before[1])


def _loss(base: nn.Module, passes: GradientPasses, examples: Sequence[Example]) -> float:
    batch = to_device(passes.task.collate(examples), passes.device)
    with torch.no_grad():
        return float(passes.task.loss(passes.task.outputs(base, batch), batch).double().sum())
