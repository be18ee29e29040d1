"""The loss's curvature at the model's outputs: the ``H`` in the generalised Gauss-Newton matrix ``G = J^T H J``.

``G_i = J_i^T H_i J_i`` (Schraudolph 2002; Martens 2020, section 8): ``J_i`` is the Jacobian of example ``i``'s outputs
by the parameters, ``H_i`` the second derivative of its loss by the outputs; for cross-entropy, ``diag p - p p^T``.
The eigendecomposition ``H_i = sum_r h_r e_r e_r^T`` turns ``G_i`` into a few backward passes, one along each ``e_r``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from influence_engine.errors import SettingsError
from influence_engine.tasks import Batch, SamplingTask, Task

_MOST_EXACT = 16
"""Outputs of an example up to which the loss's second derivative by them is decomposed exactly."""

_ROUNDING = 1e-14
"""Curvature below this is rounding of probabilities in double precision."""

_OTHER_FORM = 1e-4
"""Relative difference from a form of the second derivative above which the loss is taken to be of another."""


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


def sampled_output_gradients(
    task: Task, outputs: Tensor, batch: Batch, *, draws: int, generators: Sequence[torch.Generator]
) -> Tensor:
    """Directions at the outputs whose outer products average to the loss's second derivative, ``[draws, B, ...]``.

    Used where outputs are too many to decompose. A ``SamplingTask`` draws targets from the model's distribution, and
    the directions are the loss gradients for them: their outer products average to the Fisher matrix of that
    distribution, which is the generalised Gauss-Newton matrix (Martens 2020, section 9.2). For any other task the
    second derivative itself says how to draw, so it does not matter at which outputs a loss reads its targets, or how
    it weighs them: where it is ``s (diag p - p p^T)`` at each position, ``sqrt(s) (p - e_y)`` with ``y`` drawn from
    ``p``; where it is diagonal, ``sqrt(h)`` with random signs. All are divided by ``sqrt(draws)``.

    Args:
        task: The batch's task.
        outputs: What ``task.outputs`` returned.
        batch: The batch.
        draws: Directions an example.
        generators: One an example, on the CPU, so that what is drawn does not depend on the batch it is in.

    Raises:
        SettingsError: the task cannot sample, and the loss is of neither form.
    """
    fixed = outputs.detach()
    if isinstance(task, SamplingTask):
        gradients = [_loss_gradient(task, fixed, _sampled(task, fixed, batch, generators)) for _ in range(draws)]
    else:
        draw = _drawing(task, fixed, batch)
        gradients = [draw(generators).to(outputs.dtype) for _ in range(draws)]
    return torch.stack(gradients) / draws**0.5


def _loss_gradient(task: Task, outputs: Tensor, batch: Batch) -> Tensor:
    leaf = outputs.detach().requires_grad_()
    with torch.enable_grad():
        return torch.autograd.grad(task.loss(leaf, batch).sum(), leaf)[0]


def _sampled(task: SamplingTask, outputs: Tensor, batch: Batch, generators: Sequence[torch.Generator]) -> Batch:
    alone = [
        task.sample(
            outputs[place : place + 1], {name: tensor[place : place + 1] for name, tensor in batch.items()}, generator
        )
        for place, generator in enumerate(generators)
    ]
    return {name: torch.cat([one[name] for one in alone]) for name in alone[0]}


def _drawing(task: Task, outputs: Tensor, batch: Batch) -> Callable[[Sequence[torch.Generator]], Tensor]:
    """How to draw directions for a loss whose second derivative at the outputs has one of two forms."""
    leaf = outputs.double().requires_grad_()
    probe = torch.randn(leaf.shape, generator=torch.Generator().manual_seed(0), dtype=leaf.dtype).to(leaf.device)
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(task.loss(leaf, batch).sum(), leaf, create_graph=True)
        along, diagonal = (
            torch.autograd.grad((gradient * direction).sum(), leaf, retain_graph=True)[0]
            if gradient.requires_grad
            else torch.zeros_like(leaf)
            for direction in (probe, torch.ones_like(probe))
        )
    tolerance = _OTHER_FORM * along.norm(dim=-1).amax()
    probabilities = leaf.detach().softmax(-1)
    expected = probabilities * (probe - (probabilities * probe).sum(-1, keepdim=True))
    scale = (along * expected).sum(-1) / expected.square().sum(-1).clamp_min(_ROUNDING)
    if bool(((along - scale.unsqueeze(-1) * expected).norm(dim=-1) <= tolerance).all()):
        return partial(_categorical, probabilities, scale.clamp_min(0))
    if bool(((along - diagonal * probe).norm(dim=-1) <= tolerance).all()):
        return partial(_signs, diagonal.clamp_min(0).sqrt())
    raise SettingsError(
        f"the loss of {type(task).__name__} is neither a cross-entropy of its outputs nor a sum over them, so its "
        f"curvature cannot be drawn for {tuple(outputs.shape[1:])} outputs an example: give the task a method "
        "sample(outputs, batch, generator), which draws targets from the model",
        field="task",
    )


def _categorical(probabilities: Tensor, scale: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    directions = torch.zeros_like(probabilities)
    for place, generator in enumerate(generators):
        # Positions that the loss does not read (padding) take no part, also not in what is drawn for the others.
        read = scale[place] > 0
        rows = probabilities[place][read]
        if not len(rows):
            continue
        drawn = torch.multinomial(rows.cpu(), 1, generator=generator).to(rows.device)
        pulled = rows.scatter_add(-1, drawn, -torch.ones_like(rows[:, :1]))
        directions[place][read] = scale[place][read].sqrt().unsqueeze(-1) * pulled
    return directions


def _signs(roots: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    signs = [
        torch.randint(0, 2, roots.shape[1:], generator=generator, dtype=roots.dtype).to(roots.device) * 2 - 1
        for generator in generators
    ]
    return roots * torch.stack(signs)
