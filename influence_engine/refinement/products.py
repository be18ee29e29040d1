"""Products with the generalised Gauss-Newton matrix of all training examples, without forming the matrix.

``G v = 1/N sum_i J_i^T H_i J_i v``, with ``J_i`` the Jacobian of example ``i``'s outputs and ``H_i`` the Hessian of its
loss with respect to the outputs: a forward-mode pass gives ``J_i v``, a second derivative of the loss ``H_i J_i v``, a
backward pass ``J_i^T H_i J_i v`` (Schraudolph 2002). All vectors are preconditioned by the optimiser's ``D``: a vector
is ``D^1/2`` times weights, or ``D^-1/2`` times a gradient, laid out as the layers' matrices one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from influence_engine.curvature import LayerPreconditioner
from influence_engine.curvature.gradient_passes import GradientPasses
from influence_engine.errors import ModelError
from influence_engine.gradients import TrackedLayers
from influence_engine.gradients.forward_mode import derivative_along
from influence_engine.resources import to_device
from influence_engine.tasks import Batch, Example, Task
from influence_engine.training.frozen_cache import FrozenCache, FrozenLayers

ReportExamples = Callable[[int], None]
"""Called with the number of examples done."""


class PreconditionedSpace:
    """The vector space of the tracked layers' parameters, preconditioned by the optimiser's ``D``.

    Args:
        tracked: The layers.
        preconditioner: ``D`` as the index stores it, by layer name.
        device: Device of the model.
    """

    def __init__(
        self, tracked: TrackedLayers, preconditioner: Mapping[str, LayerPreconditioner], device: torch.device
    ) -> None:
        self.tracked = tracked
        self.shapes = {layer.name: layer.shape for layer in tracked.layers}
        self.parameters = {name: p for layer in tracked.layers for name, p in layer.parameters().items()}
        scales = [
            (preconditioner[name].row.unsqueeze(-1) * preconditioner[name].column).flatten()
            if name in preconditioner
            else torch.zeros(shape[0] * shape[1])  # the layer took no part in any forward pass
            for name, shape in self.shapes.items()
        ]
        self._scale = torch.cat([scale.to(device) for scale in scales])

    @property
    def size(self) -> int:
        """The dimension of a vector, ``P``."""
        return len(self._scale)

    def matrices(self, vectors: Tensor) -> dict[str, Tensor]:
        """Vectors ``[..., P]`` as one matrix ``[..., d0, d1]`` for each layer."""
        parts = torch.split(vectors, [d0 * d1 for d0, d1 in self.shapes.values()], -1)
        return {
            name: part.reshape(*part.shape[:-1], *shape)
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }

    def of_gradient(self, gradients: Sequence[Tensor | None]) -> Tensor:
        """Gradients with respect to ``parameters``, in their order, as a preconditioned vector ``[P]``."""
        named = {
            name: torch.zeros_like(parameter) if gradient is None else gradient
            for (name, parameter), gradient in zip(self.parameters.items(), gradients, strict=True)
        }
        matrices = self.tracked.matrices(named)
        return torch.cat([matrices[name].flatten() for name in self.shapes]) * self._scale

    def as_weights(self, vector: Tensor) -> dict[str, Tensor]:
        """A vector ``[P]`` as a direction in the weights, by parameter name."""
        return self.tracked.parameters_of(self.matrices(vector * self._scale))


class TrainingProducts:
    """Products with ``G`` and with all loss gradients, by passes over all training examples.

    Args:
        passes: Gradient passes over the model, which is in evaluation mode.
        examples: The training examples, in the index's order.
        space: The space of the vectors.
    """

    def __init__(self, passes: GradientPasses, examples: Sequence[Example], space: PreconditionedSpace) -> None:
        self._model, self._task, self._space = passes.model, passes.task, space
        self._device = passes.device
        self._examples = examples
        self._batches = passes.batches(examples)
        self._frozen = FrozenLayers(passes.model, list(space.parameters), FrozenCache())

    def __len__(self) -> int:
        return len(self._examples)

    def product(self, vectors: Tensor, report: ReportExamples) -> tuple[Tensor, Tensor]:
        """``G v`` for ``Q`` vectors at once, and the derivatives of the examples' losses along them.

        Args:
            vectors: ``[Q, P]``.
            report: Called after every batch.

        Returns:
            ``[Q, P]``; and ``[Q, N]``, the inner products of the vectors with each example's loss gradient.

        Raises:
            ModelError: a part of the model cannot be differentiated in forward mode.
        """
        products = torch.zeros_like(vectors)
        slopes = vectors.new_zeros(len(vectors), len(self._examples))
        weights = [self._space.as_weights(vector) for vector in vectors]
        done = 0
        for number, places in enumerate(self._batches):
            batch = to_device(self._task.collate([self._examples[place] for place in places]), self._device)
            with sdpa_kernel(SDPBackend.MATH):
                changes = [self._along(direction, batch, number) for direction in weights]
                with self._frozen.micro_batch(0, number), torch.enable_grad():
                    outputs = self._task.outputs(self._model, batch)
                gradient, curved = _curved(self._task, outputs, batch, changes)
                for row, (change, along) in enumerate(zip(changes, curved, strict=True)):
                    slopes[row, places] = (gradient * change).flatten(1).sum(1)
                    pulled = torch.autograd.grad(
                        outputs,
                        list(self._space.parameters.values()),
                        along,
                        retain_graph=row + 1 < len(changes),
                        allow_unused=True,
                    )
                    products[row] += self._space.of_gradient(pulled)
            done += len(places)
            report(done)
        return products / len(self._examples), slopes

    def _along(self, direction: Mapping[str, Tensor], batch: Batch, number: int) -> Tensor:
        """``J v`` of a batch, in the shape of its outputs."""
        try:
            with self._frozen.micro_batch(0, number):
                return derivative_along(self._model, self._task.outputs, batch, self._space.parameters, direction)
        except NotImplementedError as error:
            name = type(self._model).__name__
            raise ModelError(f"{name} cannot be differentiated in forward mode: {error}", field="tier") from error


def _curved(task: Task, outputs: Tensor, batch: Batch, changes: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """The losses' gradient ``[B, ...]`` with respect to the outputs, and their Hessian times each ``changes``."""
    leaf = outputs.detach().requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(task.loss(leaf, batch).sum(), leaf, create_graph=True)
        if not gradient.requires_grad:  # a loss that is linear in the outputs has no curvature
            return gradient, [torch.zeros_like(change) for change in changes]
        curved = [torch.autograd.grad(gradient, leaf, change, retain_graph=True)[0] for change in changes]
    return gradient.detach(), curved
