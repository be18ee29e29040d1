"""Exact damped GGN influence in its dual form: the reference that the index is tested against.

``influence_i = -phi_q^T (G + lambda D)^-1 g_i a_i / Z`` is Koh and Liang 2017, eq. 2, with a query's measurement (its
gradient ``phi_q``) in place of the test loss, the example's weight ``a_i / Z`` in the objective as the perturbation,
and the damped GGN ``G + lambda D`` in place of the Hessian. ``G = A^T A``, with ``A`` the stacked rows
``sqrt(h_r a_i / Z) e_r^T J_i`` (``curvature.output``). By Woodbury's identity,

    (A^T A + lambda D)^-1 = (D^-1 - D^-1 A^T (A D^-1 A^T + lambda I)^-1 A D^-1) / lambda,

only inner products of the ``N R`` rows are needed. All gradients are materialised, so this is for small cases.
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
    preconditioner: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """Influence of every training example on every query's measurement, ``[Q, N]`` in float64.

    Args:
        model: The fine-tuned model.
        task: Its task; outputs must be ``[B, C]``.
        tracked: The layers whose parameters influence goes through.
        train: The training examples; each has the weight ``1 / N`` in the objective.
        queries: The inputs whose measurement is explained.
        damping: ``lambda``.
        preconditioner: ``D`` by layer name as ``[d0, d1]``; the identity if left out.
    """
    roots, gradients, measured = [], [], []
    for example in train:
        with _one(model, task, tracked, example) as trace:
            curvature = exact_output_curvature(task, trace.outputs, trace.batch)
            for direction, value in zip(curvature.directions, curvature.curvatures, strict=True):
                pulled = trace.gradients_along(trace.outputs, direction, keep_graph=True)
                roots.append(_flat(pulled, tracked, preconditioner) * value.double().sqrt())
            losses_of_one = trace.layer_gradients(task.loss(trace.outputs, trace.batch))
            gradients.append(_flat(losses_of_one, tracked, preconditioner))
    for query in queries:
        with _one(model, task, tracked, query) as trace:
            measurement = trace.layer_gradients(task.measurement(trace.outputs, trace.batch))
            measured.append(_flat(measurement, tracked, preconditioner))
    rows = torch.stack(roots) / len(train) ** 0.5
    losses = torch.stack(gradients) / len(train)
    phi = torch.stack(measured)
    return influence_from_products(rows @ rows.T, rows @ losses.T, phi @ rows.T, phi @ losses.T, damping=damping)


def influence_from_products(
    kernel: Tensor, rows_losses: Tensor, queries_rows: Tensor, queries_losses: Tensor, *, damping: float
) -> Tensor:
    """Exact damped GGN influence ``[Q, N]`` from inner products alone, for gradients that are never all in memory.

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
    gradients: Mapping[str, LayerGradient], tracked: TrackedLayers, preconditioner: Mapping[str, Tensor] | None
) -> Tensor:
    """``D^-1/2 g`` of a batch of one as a vector ``[P]``; zeros for layers that took no part in the forward pass."""
    parts = []
    for layer in tracked.layers:
        dense = gradients[layer.name].dense()[0].double() if layer.name in gradients else torch.zeros(layer.shape)
        scaled = dense / preconditioner[layer.name].double().sqrt() if preconditioner else dense
        parts.append(scaled.flatten().double())
    return torch.cat(parts)
