"""The recorded steps, linearised: how examples' weights and small displacements of the parameters change each gradient.

A change ``delta`` of the parameters that step ``s`` starts from changes the step's gradient by ``H_s delta``, with the
Hessian approximated by the Gauss-Newton matrix ``G_s = sum_j h_j r_j r_j^T`` of the step's batch (its residual part is
in ``residual_hessian``, that of adapters in ``lora_cross_terms``); a change of example ``i``'s weight changes it by the
example's own gradient ``sum_j c_j r_j``. Both are sums over the batch's pulled-back rows ``r_j``
(``curvature.gradient_passes``), so that a step can displace the final weights along these few directions only.
Everything is stored in the ``k`` coordinates of the index. First-order expansion of the recorded step, this project's
own; ``sensitivity`` runs through the linearised steps.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from influence_engine.curvature.gradient_passes import Batches, GradientPasses
from influence_engine.index.encoding.encoder import LayerCoordinates
from influence_engine.index.unrolling.lora_cross_terms import CrossTermSum, adapter_pairs
from influence_engine.index.unrolling.residual_hessian import (
    ResidualHessian,
    ResidualObjective,
    ResidualProducts,
    ResidualRows,
)
from influence_engine.index.unrolling.row_projection import RowProjection, StepRows
from influence_engine.index.unrolling.step_displacement import StepDisplacement
from influence_engine.progress import Progress
from influence_engine.resources import within_memory
from influence_engine.tasks import Example
from influence_engine.tensor_files import write_tensors
from influence_engine.training import RecordedTraining, Run
from influence_engine.training.checkpoint_intervals import RecordedStates
from influence_engine.training.frozen_cache import FrozenCache, FrozenLayers
from influence_engine.training.optimizers import Parameters
from influence_engine.training.schedule import Step
from influence_engine.training.sensitivity import Sensitivity, sensitivity_of
from influence_engine.training.step import Objective, UpdateRule, parameters_put_back, put_parameters, set_dropout

STAGE = "linearising the recorded steps"
SUMS = "sums.safetensors"
DISPLACEMENTS = ("direct", "second_moment")
PROJECTED = ("pulled", *DISPLACEMENTS)
"""Fields of a step that are ``[n, k]``."""

NO_EXAMPLE = -1
"""In ``LinearisedStep.examples``: a row of the residual Hessian."""

BY_ROW = ("examples", *PROJECTED, "curvature", "source", "gradient", "along")
"""Fields of a step with an entry for each pulled-back row."""

_STORED_AS = "stored_as"


@dataclass(frozen=True)
class LinearisedStep:
    """One step with its ``n`` pulled-back rows; row ``j`` belongs to example ``i``.

    ``w_i`` is the example's recorded weight, ``a_i / Z`` its share of the step's objective, ``h_j`` and ``c_j`` are the
    row's curvature and its coefficient in the loss gradient (``curvature.gradient_passes``).

    Attributes:
        examples: ``[n]``, the example of each row, or ``NO_EXAMPLE``.
        pulled: ``[n, k]``, the rows ``r_j``.
        direct: ``[n, k]``, ``E r_j``: minus the final weights' displacement for a unit of row ``j`` in the step's
            gradient (``training.sensitivity``).
        second_moment: ``[n, k]``, ``L r_j``: the same through Adam's second moment; ``[0, k]`` for other optimisers.
        curvature: ``[n]``, ``w_i a_i h_j / Z``.
        source: ``[n]``, the rows' coefficients in the derivative of the step's gradient by ``w_i``: ``a_i c_j / Z``.
        gradient: ``[n]``, the rows' coefficients in the step's gradient before clipping: ``w_i a_i c_j / Z``.
        along: ``[n]``, inner products of the rows with the gradient before clipping, over its squared norm.
        clip: ``[]``, the factor of clipping.
        cross_direct: ``[q, q]``, LoRA cross terms through ``E`` (``lora_cross_terms``); ``q = 0`` without adapters.
        cross_second_moment: ``[q, q]``, LoRA cross terms through ``L``, or ``[0, 0]``.
        cross_along: ``[q]``, inner products of the cross terms with the gradient, over its squared norm.
    """

    examples: Tensor
    pulled: Tensor
    direct: Tensor
    second_moment: Tensor = field(metadata={_STORED_AS: "late"})
    curvature: Tensor
    source: Tensor
    gradient: Tensor
    along: Tensor
    clip: Tensor
    cross_direct: Tensor = field(metadata={_STORED_AS: "coupled"})
    cross_second_moment: Tensor = field(metadata={_STORED_AS: "coupled_late"})
    cross_along: Tensor = field(metadata={_STORED_AS: "coupled_along"})

    def to(self, device: torch.device) -> LinearisedStep:
        """A copy on a device."""
        return replace(self, **{name: getattr(self, name).to(device) for name in STORED_NAMES})


STORED_NAMES: Mapping[str, str] = {one.name: one.metadata.get(_STORED_AS, one.name) for one in fields(LinearisedStep)}
"""Fields of a step, each with its name in the files of a build (older names than the fields', so that builds go on)."""


@dataclass(frozen=True)
class _IndexSpace:
    """The space that steps are projected on.

    Attributes:
        rows: Projects rows on it.
        hessian: Multiplies with the residual Hessian of a step; none where it is left out.
    """

    rows: RowProjection
    hessian: ResidualHessian | None


class StepLineariser:
    """Linearises a record from its last step back, one interval between checkpoints at a time, into a file for each.

    Args:
        run: A run that can be replayed.
        passes: Run the run's model over examples; its trained parameters are changed meanwhile, and restored.
        examples: The training examples, in the recorded order.
        folder: Where the files are stored; an interval that is there already is not linearised again.
        progress: Called after every step.
    """

    def __init__(
        self, run: Run, passes: GradientPasses, examples: Sequence[Example], folder: Path, progress: Progress
    ) -> None:
        self.run, self.passes, self.examples, self.folder, self.progress = run, passes, examples, folder, progress
        model = passes.model
        self._pairs = adapter_pairs(passes.tracked)
        self._cache = FrozenCache()
        frozen = None if run.dropout else FrozenLayers(model, run.trainable, self._cache)
        self._objective = Objective(model, passes.task, frozen, first_position=run.first_position)
        self._residual = ResidualObjective(model, passes.task, frozen, first_position=run.first_position)
        rule = UpdateRule(self._objective, run.optimizer, run.max_grad_norm)
        self._states = RecordedStates(RecordedTraining(run, passes.task, examples, model, passes.device), rule)

    def sample(self, count: int) -> Batches:
        """``count`` examples in batches, from the steps after each checkpoint but the last.

        The model has the checkpoint's weights while a batch is yielded.
        """
        intervals = self._states.intervals()[::-1]
        for number, (first, last) in enumerate(intervals):
            quota = count * (number + 1) // len(intervals) - count * number // len(intervals)
            schedule = self.run.schedule
            uses = torch.cat([rows for step in range(first + 1, last + 1) for rows in schedule.step(step).rows])
            rows = uses[:quota].tolist()
            with _at_weights(self.passes.model, self._states.checkpoint(first)[0]):
                yield from self.passes.grouped(self.examples, rows)

    def linearise(self, coordinates: LayerCoordinates, basis: Tensor, directions: Tensor | None = None) -> list[Path]:
        """The files of all intervals between checkpoints, first steps first; ``read_steps`` reads them.

        Args:
            coordinates: The index's layer coordinates.
            basis: ``[m, k]``.
            directions: ``U [k, q]``, along which the steps' Hessians are exact; Gauss-Newton only if left out.

        Raises:
            DigestMismatchError: the steps do not come out as recorded.
        """
        hessian = None
        if directions is not None:
            hessian = ResidualHessian(
                self._residual, self.passes.tracked, coordinates, basis, directions, self._states.weights
            )
        space = _IndexSpace(RowProjection(coordinates, basis), hessian)
        total = len(self.run.schedule)
        sensitivity = sensitivity_of(self.run.optimizer, self._states.checkpoint(total)[0])
        sums, done = self.folder / SUMS, total
        if sums.exists():
            stored = load_file(sums)
            done = int(stored.pop("done"))
            sensitivity.restore(stored)
        paths: list[Path] = []
        for first, last in self._states.intervals():
            path = self.folder / f"steps-{first:09d}.safetensors"
            paths.insert(0, path)
            if last > done:
                self.progress(STAGE, total - first, total)
                continue
            steps = self._within_memory(first, last, sensitivity, space)
            write_tensors(
                path, {f"{n}/{key}": getattr(step, name) for n, step in steps for name, key in STORED_NAMES.items()}
            )
            write_tensors(sums, sensitivity.tensors() | {"done": torch.tensor(first)})
        return paths

    def decays(self) -> Tensor:
        """Share of the trained weights that each step's weight decay leaves, ``[T]``.

        Deviation: where parameters have different decays, the mean over parameters, since the coordinates mix them.
        """
        decay: Mapping[str, float] = getattr(self.run.optimizer, "weight_decay", {})
        sizes = {name: self.passes.model.get_parameter(name).numel() for name in self.run.trainable}
        mean = sum(decay.get(name, 0.0) * size for name, size in sizes.items()) / sum(sizes.values())
        return 1.0 - self.run.learning_rates * mean

    def _within_memory(
        self, first: int, last: int, sensitivity: Sensitivity, space: _IndexSpace
    ) -> list[tuple[int, LinearisedStep]]:
        """``_interval``, begun again with half as large micro-batches where memory runs out.

        Not with dropout, whose masks depend on the micro-batches.
        """
        before, total = sensitivity.tensors(), len(self.run.schedule)

        def interval() -> list[tuple[int, LinearisedStep]]:
            try:
                return self._interval(first, last, sensitivity, space)
            finally:
                self._cache.clear()

        def halve() -> None:
            sensitivity.restore(before)
            most = self._states.schedule.largest // 2
            self._states.schedule = self.run.schedule.split(most)
            note = f"memory ran out; going on with {most} examples of a step at once"
            self.progress(STAGE, total - last, total, note)

        return within_memory(interval, lambda: not self.run.dropout and self._states.schedule.largest > 1, halve)

    def _interval(
        self, first: int, last: int, sensitivity: Sensitivity, space: _IndexSpace
    ) -> list[tuple[int, LinearisedStep]]:
        """The linearised steps ``first + 1 .. last`` with their numbers, last step first, on the processor."""
        set_dropout(self.passes.model, self.run.dropout)
        states, after = self._states.between(first, last), self._states.checkpoint(last)
        total = len(self.run.schedule)
        found = []
        while states:
            number = first + len(states)
            before = states.pop()
            step = self._states.schedule.step(number)
            *sensitivities, gradient = sensitivity.backward(number, step.learning_rate, before[1], after[1])
            displacement = StepDisplacement.of(space.rows.coordinates, self.passes.tracked, sensitivities, gradient)
            products = None
            if space.hessian is not None:
                products = space.hessian.products(step, self._states.batches(step), before[0], displacement)
            with _at_weights(self.passes.model, before[0]):
                linearised = self._linearised(step, space, displacement, products)
            found.append((number, linearised.to(torch.device("cpu"))))
            after = before
            self.progress(STAGE, total - number + 1, total)
        return found

    def _linearised(
        self, step: Step, space: _IndexSpace, displacement: StepDisplacement, products: ResidualProducts | None
    ) -> LinearisedStep:
        """One step, while the model has the weights that it started from."""
        coordinates, basis = space.rows.coordinates, space.rows.basis
        parts: dict[str, list[Tensor]] = {name: [] for name in BY_ROW if name not in PROJECTED}
        projected = StepRows(space.rows, displacement)
        adapters = CrossTermSum(self._pairs)
        for number, (rows, shares) in enumerate(zip(step.rows, step.shares, strict=True)):
            source = (shares / step.normalizer).to(self.passes.device)
            weight = source * self._states.weights[rows].to(source)
            with self._objective.micro_batch(step.number, number):
                found = self.passes.rows([self.examples[place] for place in rows.tolist()])
                for row in projected.through(found):
                    parts["examples"].append(rows)
                    parts["curvature"].append(weight * row.root_curvature.pow(2))
                    parts["source"].append(source * row.loss)
                    parts["gradient"].append(weight * row.loss)
                    inner = [each.inner(displacement.by_layer[name]) for name, each in row.gradients.items()]
                    parts["along"].append(torch.stack(inner).sum(0))
                    adapters.add(row.gradients, weight * row.loss)
        one = {name: torch.cat(part) for name, part in parts.items()}
        nothing = basis.new_zeros(0, basis.shape[1])  # where there are no second moments
        one |= dict(zip(PROJECTED, [*projected.projected(), nothing], strict=False))
        cross_terms = adapters.cross_terms(coordinates, basis, displacement, with_gradient=products is not None)
        clip, share = self._clipping(step, one["gradient"], one["along"], displacement.by_parameter)
        if products is not None:
            one = _with_residual(one, products.rows(cross_terms))
        return LinearisedStep(
            **{**one, "along": one["along"] * share},
            clip=torch.tensor(clip),
            cross_direct=cross_terms.direct,
            cross_second_moment=cross_terms.second_moment,
            cross_along=cross_terms.along * share,
        )

    def _clipping(self, step: Step, coefficients: Tensor, along: Tensor, gradient: Parameters) -> tuple[float, float]:
        """The factor of clipping, and the factor that turns inner products with the gradient after clipping into those
        with the gradient before it, over its squared norm."""
        squared = sum(float(part.double().pow(2).sum()) for part in gradient.values())
        recorded = float(self.run.clip_factors[step.number - 1])
        if self.run.max_grad_norm is None or not squared:
            return 1.0, 0.0
        # The record of a Trainer has no factors (nan). The rows' sum is the gradient before clipping, so the factor is
        # <clipped, clipped> / <unclipped, clipped>.
        factor = recorded if recorded == recorded else squared / float((coefficients * along).sum())
        factor = min(factor, 1.0)
        return factor, factor / squared


def _with_residual(one: Mapping[str, Tensor], residual: ResidualRows) -> dict[str, Tensor]:
    """The rows of a step, and after them those of its residual Hessian, which belong to no example."""
    count = len(residual.pulled)
    nothing = residual.along.new_zeros(count)
    more = {
        "examples": torch.full((count,), NO_EXAMPLE, dtype=one["examples"].dtype),
        "pulled": residual.pulled,
        **dict(zip(DISPLACEMENTS, residual.displacements, strict=False)),
        "curvature": nothing + 1,
        "source": nothing,
        "gradient": nothing,
        "along": residual.along,
    }
    return {name: torch.cat([tensor, more[name]]) if name in more else tensor for name, tensor in one.items()}


@contextlib.contextmanager
def _at_weights(model: nn.Module, parameters: Parameters) -> Iterator[None]:
    """While entered, the model has these parameters and is in evaluation mode; both are restored."""
    was_training = model.training
    model.eval()
    try:
        with parameters_put_back(model, list(parameters)):
            put_parameters(model, parameters)
            yield
    finally:
        model.train(was_training)


def read_steps(path: Path) -> list[LinearisedStep]:
    """The linearised steps of one interval between checkpoints, in their order."""
    found = load_file(path)
    numbers = sorted({int(key.partition("/")[0]) for key in found})
    return [
        LinearisedStep(**{name: found[f"{number}/{key}"] for name, key in STORED_NAMES.items()}) for number in numbers
    ]
