"""The generalised Gauss-Newton matrix at the model's outputs: directions whose pull-backs sum to it.

``G_i = J_i^T H_i J_i`` with ``H_i`` the second derivative of example ``i``'s loss with respect to the outputs (for
cross-entropy ``diag p - p p^T``). ``H_i = sum_r h_r e_r e_r^T`` turns it into a few backward passes along ``e_r``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from influence_engine.tasks import Batch, Task

_MOST_EXACT = 16
"""Outputs per example up to which the output's second derivative is decomposed exactly."""

_ROUNDING = 1e-14
"""Curvature below this is rounding of probabilities in double precision."""


@dataclass(frozen=True)
class OutputCurvature:
    """Curvature and loss gradient of each example at the outputs ``[B, C]``.

    Attributes:
        directions: ``[R, B, C]``, unit vectors ``e_r``.
        curvatures: ``[R, B]``, their ``h_r >= 0``.
        loss_gradient: ``[B, C]``.
        coefficients: ``[R, B]`` with ``loss_gradient = sum_r coefficients_r e_r`` where that holds for every example of
            the batch, else ``None``: then the loss needs a backward pass of its own.
    """

    directions: Tensor
    curvatures: Tensor
    loss_gradient: Tensor
    coefficients: Tensor | None


def fits_exact_curvature(outputs: Tensor) -> bool:
    """Whether outputs are one short vector an example, so that the exact decomposition is cheap."""
    return outputs.dim() == 2 and outputs.shape[1] <= _MOST_EXACT


def exact_output_curvature(task: Task, outputs: Tensor, batch: Batch) -> OutputCurvature:
    """Decomposes the second derivative of the loss by the outputs ``[B, C]`` exactly."""
    leaf = outputs.detach().double().requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(task.loss(leaf, batch).sum(), leaf, create_graph=True)
        rows = [
            torch.autograd.grad(gradient[:, column].sum(), leaf, retain_graph=True)[0]
            if gradient.requires_grad
            else torch.zeros_like(leaf)
            for column in range(leaf.shape[1])
        ]
    values, vectors = torch.linalg.eigh(torch.stack(rows, 1))
    values = values.clamp_min(0)
    # Null directions of all examples (adding a constant to all logits) need no backward pass. The bound is the batch's:
    # within an example that the model is sure of, all is rounding.
    used = (values > values.amax().mul(1e-9).clamp_min(_ROUNDING)).any(0).nonzero().flatten().flip(0)
    directions = vectors[:, :, used].permute(2, 0, 1)
    curvatures = values[:, used].T
    gradient = gradient.detach()
    coefficients = (directions * gradient).sum(-1)
    rest = gradient - (coefficients.unsqueeze(-1) * directions).sum(0)
    complete = bool((rest.norm(dim=-1) <= 1e-6 * gradient.norm(dim=-1)).all())
    to = outputs.dtype
    return OutputCurvature(
        directions.to(to), curvatures.to(to), gradient.to(to), coefficients.to(to) if complete else None
    )


def sampled_output_gradients(task: Task, outputs: Tensor, batch: Batch, *, draws: int, seed: int) -> Tensor:
    """Loss gradients at the outputs for labels drawn from the model, ``[draws, B, ...]``, times ``1 / sqrt(draws)``.

    Their outer products average to the generalised Gauss-Newton matrix (it is the Fisher matrix of the model's own
    distribution); used where outputs are too many to decompose.
    """
    sample = getattr(task, "sample", None)
    generator = torch.Generator().manual_seed(seed)
    gradients = []
    for _ in range(draws):
        drawn = sample(outputs.detach(), batch) if sample else _categorical(outputs.detach(), batch, generator)
        leaf = outputs.detach().requires_grad_()
        with torch.enable_grad():
            gradients.append(torch.autograd.grad(task.loss(leaf, drawn).sum(), leaf)[0])
    return torch.stack(gradients) / draws**0.5


def _categorical(outputs: Tensor, batch: Batch, generator: torch.Generator) -> Batch:
    labels = batch["labels"]
    probabilities = outputs.float().softmax(-1).cpu()
    drawn = torch.multinomial(probabilities.flatten(0, -2), 1, generator=generator).reshape(labels.shape)
    # Positions without a label (padding, -100) stay without one.
    return {**batch, "labels": torch.where(labels < 0, labels, drawn.to(labels.device))}
