"""Preconditioner and damping of a training that was not recorded, estimated from its two ends."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from safetensors.torch import load_file
from torch import nn

from influence_engine.curvature import (
    LayerPreconditioner,
    Preconditioner,
    SecondMomentEstimate,
    displacement_damping,
    identity_preconditioner,
)
from influence_engine.index.building.context import BuildContext
from influence_engine.index.sizes import PRECONDITIONER_SAMPLE
from influence_engine.index.unrolling.trajectory import layer_matrices
from influence_engine.resources import to_device
from influence_engine.tasks import Example
from influence_engine.tensor_files import write_tensors

ESTIMATING = "estimating the optimiser's preconditioner"

TRAINING = "training.safetensors"
"""The estimate of a training, in the build's folder until the index is complete."""


@dataclass(frozen=True)
class TrainingEstimate:
    """The estimate of a training without a record.

    Attributes:
        preconditioner: Adam's, from squared gradients at the final weights, or the identity.
        damping: From how far the weights are from the base model's and how far the loss has fallen
            (``curvature.displacement_damping``); ``None`` where the base model is not known or tells nothing of it.
    """

    preconditioner: Preconditioner
    damping: float | None


def estimate_training(context: BuildContext, base: nn.Module | None, *, adam: bool) -> TrainingEstimate:
    """Estimates a training from a sample of its examples, or reads the estimate that an interrupted build has left.

    Args:
        context: The build.
        base: The model before fine-tuning, where it is known; moved to the fine-tuned model's device meanwhile.
        adam: Whether the optimiser is taken to be Adam.
    """
    layers, path = context.passes.tracked.layers, context.folder / TRAINING
    if not path.exists():
        found = context.within_memory(
            ESTIMATING, lambda: _estimated(context, base, adam=adam), total=PRECONDITIONER_SAMPLE
        )
        tensors = {"damping": torch.tensor(found.damping or 0.0, dtype=torch.float64)}
        for number, layer in enumerate(layers):
            one = found.preconditioner[layer.name]
            tensors |= {f"{number}.row": one.row.cpu(), f"{number}.column": one.column.cpu()}
        context.folder.mkdir(parents=True, exist_ok=True)
        write_tensors(path, tensors)
    stored = load_file(path)
    return TrainingEstimate(
        {
            layer.name: LayerPreconditioner(stored[f"{number}.row"], stored[f"{number}.column"])
            for number, layer in enumerate(layers)
        },
        float(stored["damping"]) or None,
    )


def _estimated(context: BuildContext, base: nn.Module | None, *, adam: bool) -> TrainingEstimate:
    passes, examples = context.passes, context.examples
    generator = torch.Generator().manual_seed(context.settings.seed)
    sample = torch.randperm(len(examples), generator=generator)[:PRECONDITIONER_SAMPLE].tolist()
    moments, task, done, fall = SecondMomentEstimate(), passes.task, 0, 0.0
    before = None if base is None else (base.training, next(base.parameters()).device)
    try:
        if base is not None:
            base.eval().to(passes.device)
        for _, batch in passes.grouped(examples, sample):
            with passes.trace(batch) as trace:
                losses = task.loss(trace.outputs, trace.batch)
                gradients = trace.layer_gradients(losses)
            if adam:
                moments.add(gradients, len(batch))
            if base is not None:
                fall += _summed_loss(base, context, batch) - float(losses.detach().double().sum())
            done += len(batch)
            context.progress(ESTIMATING, done, len(sample))
        preconditioner = moments.preconditioner(passes.tracked) if adam else identity_preconditioner(passes.tracked)
        damping = None
        if base is not None:
            own, start = layer_matrices(passes.tracked, passes.model), layer_matrices(passes.tracked, base)
            damping = displacement_damping(fall / len(sample), own, start, preconditioner)
        return TrainingEstimate(preconditioner, damping)
    finally:
        if base is not None and before is not None:
            base.train(before[0]).to(before[1])


def _summed_loss(base: nn.Module, context: BuildContext, examples: list[Example]) -> float:
    """The sum of the base model's losses on a batch."""
    task = context.passes.task
    batch = to_device(task.collate(examples), context.passes.device)
    with torch.no_grad():
        return float(task.loss(task.outputs(base, batch), batch).double().sum())
