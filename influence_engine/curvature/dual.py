"""Exact damped GGN influence in its dual form: the reference that the index is tested against.

``influence_i = -phi_q^T (G + lambda D)^-1 g_i a_i / Z`` with ``G = A^T A``, ``A`` the stacked rows
``sqrt(h_r a_i / Z) e_r^T J_i``. By Woodbury's identity only products of rows are needed, ``N R`` squared of them; all
gradients are materialised, so this is for small cases.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from influence_engine.curvature.output import exact_output_curvature
from influence_engine.gradients import LayerGradient, Trace, TrackedLayers, tracing
from influence_engine.tasks import Example, Task


def exact_influence(
    model: nn.Module,
    task: Task,
    tracked: TrackedLayers,
    train: Sequence[Example],
    queries: Sequence[Example],
    *,
    damping: float,
    metric: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """Influence of every training example on every query's measurement, ``[Q, N]`` in float64.

    Args:
        model: The fine-tuned model.
        task: Its task; outputs must be ``[B, C]``.
        tracked: The layers to go through.
        train: The training examples; each weighs ``1 / N`` in the objective.
        queries: What is explained.
        damping: ``lambda``.
        metric: ``D`` by layer name as ``[d0, d1]``; the identity if left out.
    """
    roots, gradients, measured = [], [], []
    for example in train:
        with _one(model, task, tracked, example) as trace:
            curvature = exact_output_curvature(task, trace.outputs, trace.batch)
            for direction, value in zip(curvature.directions, curvature.curvatures, strict=True):
                pulled = trace.gradients_along(trace.outputs, direction, keep_graph=True)
                roots.append(_flat(pulled, tracked, metric) * value.double().sqrt())
            gradients.append(_flat(trace.layer_gradients(task.loss(trace.outputs, trace.batch)), tracked, metric))
    for query in queries:
        with _one(model, task, tracked, query) as trace:
            measured.append(_flat(trace.layer_gradients(task.measurement(trace.outputs, trace.batch)), tracked, metric))
    rows = torch.stack(roots) / len(train) ** 0.5
    losses = torch.stack(gradients) / len(train)
    phi = torch.stack(measured)
    return influence_from_products(rows @ rows.T, rows @ losses.T, phi @ rows.T, phi @ losses.T, damping=damping)


def influence_from_products(
    kernel: Tensor, rows_losses: Tensor, queries_rows: Tensor, queries_losses: Tensor, *, damping: float
) -> Tensor:
    """The same from products of rows alone, ``[Q, N]``, for gradients that are never in one place.

    Args:
        kernel: ``A D^-1 A^T``, ``[N R, N R]``.
        rows_losses: ``A D^-1 g^T / Z`` with the examples' loss gradients ``g``, ``[N R, N]``.
        queries_rows: ``phi D^-1 A^T``, ``[Q, N R]``.
        queries_losses: ``phi D^-1 g^T / Z``, ``[Q, N]``.
        damping: ``lambda``.
    """
    damped = kernel + damping * torch.eye(len(kernel), dtype=kernel.dtype)
    return -(queries_losses - queries_rows @ torch.linalg.solve(damped, rows_losses)) / damping


def _one(model: nn.Module, task: Task, tracked: TrackedLayers, example: Example) -> AbstractContextManager[Trace]:
    return tracing(model, task, tracked.layers, task.collate([example]))


def _flat(
    gradients: Mapping[str, LayerGradient], tracked: TrackedLayers, metric: Mapping[str, Tensor] | None
) -> Tensor:
    parts = []
    for layer in tracked.layers:
        dense = gradients[layer.name].dense()[0].double() if layer.name in gradients else torch.zeros(layer.shape)
        parts.append((dense / metric[layer.name].double().sqrt() if metric else dense).flatten().double())
    return torch.cat(parts)
