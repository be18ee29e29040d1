"""The loss's curvature at the model's outputs: the ``H`` in the generalised Gauss-Newton matrix ``G = J^T H J``.

``G_i = J_i^T H_i J_i`` (Schraudolph 2002; Martens 2020, section 8): ``J_i`` is the Jacobian of example ``i``'s outputs
by the parameters, ``H_i`` the second derivative of its loss by the outputs; for cross-entropy, ``diag p - p p^T``.
The eigendecomposition ``H_i = sum_r h_r e_r e_r^T`` turns ``G_i`` into a few backward passes, one along each ``e_r``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from influence_engine.tasks import Batch, Task

_MOST_EXACT = 16
"""Outputs of an example up to which the loss's second derivative by them is decomposed exactly."""

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
            the batch, else ``None``: the loss then needs a backward pass of its own.
    """

    directions: Tensor
    curvatures: Tensor
    loss_gradient: Tensor
    coefficients: Tensor | None


def fits_exact_curvature(outputs: Tensor) -> bool:
    """Whether each example has one short vector of outputs, so that the exact decomposition is cheap."""
    return outputs.dim() == 2 and outputs.shape[1] <= _MOST_EXACT


def exact_output_curvature(task: Task, outputs: Tensor, batch: Batch) -> OutputCurvature:
    """Eigendecomposition of each example's ``H_i``, the second derivative of its loss by its outputs ``[B, C]``."""
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
    # Directions without curvature in every example (adding a constant to all logits) need no backward pass. The bound
    # is relative to the batch: within an example that the model is certain of, every eigenvalue is rounding.
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

    In expectation their outer products sum to ``H``: for a loss that is a log-likelihood of the exponential family, the
    GGN is the Fisher matrix under the model's own distribution (Martens 2020, section 9; labels from the data would
    give the empirical Fisher matrix instead). Used where outputs are too many to decompose ``H``.

    Args:
        task: ``task.sample(outputs, batch)`` draws the labels; a task without it has them drawn from the softmax of the
            outputs.
        outputs: The model's.
        batch: What the outputs were computed from.
        draws: How many labels are drawn for each example.
        seed: Of the drawn labels.
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
