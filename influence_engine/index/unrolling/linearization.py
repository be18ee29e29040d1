"""The recorded steps, linearised: what an example's weight, or model weights a little different, do at each of them.

At the weights that step ``s`` started from, its gradient answers to a change ``delta`` of these weights by
``G_s delta`` with the Gauss-Newton matrix ``G_s = sum_j h_j r_j r_j^T`` of its batch, and to example ``i``'s weight by
the example's own gradient. Both are sums over the batch's pulled-back rows ``r_j`` (see ``passes``), so a step can move
the final weights along a few fixed directions only. Everything is kept in the ``k`` coordinates of the index.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from influence_engine.curvature.gradient_passes import Batches, GradientPasses
from influence_engine.index.encoding.encoder import LayerCoordinates
from influence_engine.index.unrolling.lora_cross_terms import StepCoupling, adapter_pairs
from influence_engine.index.unrolling.residual_hessian import (
    ResidualHessian,
    ResidualObjective,
    ResidualProducts,
    ResidualRows,
)
from influence_engine.index.unrolling.step_displacement import StepMove
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
MOVES = ("direct", "late")
PROJECTED = ("pulled", *MOVES)
"""Fields of a step that are ``[n, k]``."""

NOBODY = -1
"""In ``LinearStep.examples``: a row of the residual Hessian."""

BY_ROW = ("examples", *PROJECTED, "curvature", "source", "gradient", "along")


@dataclass(frozen=True)
class LinearStep:
    """One step; ``n`` pulled-back rows.

    Attributes:
        examples: ``[n]``, the example that each row belongs to, or ``NOBODY``.
        pulled: ``[n, k]``, ``r_j`` in the optimiser's metric.
        direct: ``[n, k]``, where a unit of row ``j`` in the gradient moves the final weights (``E`` of
            ``training.sensitivity``).
        late: ``[n, k]``, the same through the second moment (``L``), or ``[0, k]``.
        curvature: ``[n]``, ``w_i a_i h_j / Z``.
        source: ``[n]``, coefficients of the rows in the derivative by the example's weight, ``a_i c_j / Z``.
        gradient: ``[n]``, coefficients of the rows in the step's gradient before clipping, ``w_i a_i c_j / Z``.
        along: ``[n]``, inner products of the rows with that gradient, over its squared norm.
        clip: ``[]``, the factor of clipping.
        coupled: ``[q, q]``, what displaced adapters do to the step's move (``couplings``), ``q = 0`` without adapters.
        coupled_late: ``[q, q]``, the same through the second moment, or ``[0, 0]``.
        coupled_along: ``[q]``, inner products of what they change with the gradient, over its squared norm.
    """

    examples: Tensor
    pulled: Tensor
    direct: Tensor
    late: Tensor
    curvature: Tensor
    source: Tensor
    gradient: Tensor
    along: Tensor
    clip: Tensor
    coupled: Tensor
    coupled_late: Tensor
    coupled_along: Tensor

    def to(self, device: torch.device) -> LinearStep:
        """The same on a device."""
        return replace(self, **{one.name: getattr(self, one.name).to(device) for one in FIELDS})


FIELDS = fields(LinearStep)


@dataclass(frozen=True)
class _Seen:
    """What steps are seen in.

    Attributes:
        coordinates: Of the index.
        basis: ``[m, k]``.
        hessian: Multiplies what Gauss-Newton matrices leave out of the steps' Hessians, or nothing.
    """

    coordinates: LayerCoordinates
    basis: Tensor
    hessian: ResidualHessian | None


class StepLineariser:
    """Walks a record back, a stretch between two checkpoints at a time, and keeps each stretch on disk.

    Args:
        run: A run that can be replayed.
        passes: Over the run's model; its trained parameters are changed while this works, and put back.
        examples: In the recorded order.
        folder: Where the stretches are kept; what is there already is not done again.
        progress: Told of every step.
    """

    def __init__(
        self, run: Run, passes: GradientPasses, examples: Sequence[Example], folder: Path, progress: Progress
    ) -> None:
        self.run, self.passes, self.examples, self.folder, self.progress = run, passes, examples, folder, progress
        model = passes.model
        self._pairs = adapter_pairs(passes.tracked)
        self._kept = FrozenCache()
        frozen = None if run.dropout else FrozenLayers(model, run.trainable, self._kept)
        self._objective = Objective(model, passes.task, frozen, first_position=run.first_position)
        self._residual = ResidualObjective(model, passes.task, frozen, first_position=run.first_position)
        rule = UpdateRule(self._objective, run.optimizer, run.max_grad_norm)
        self._states = RecordedStates(RecordedTraining(run, passes.task, examples, model, passes.device), rule)

    def sampled(self, most: int) -> Batches:
        """Examples as the model met them: batches from the steps after each checkpoint but the last.

        The model has the checkpoint's weights while a batch is yielded. ``most`` examples in all.
        """
        stretches = self._states.intervals()[::-1]
        for number, (first, last) in enumerate(stretches):
            quota = most * (number + 1) // len(stretches) - most * number // len(stretches)
            schedule = self.run.schedule
            uses = torch.cat([rows for step in range(first + 1, last + 1) for rows in schedule.step(step).rows])
            rows = uses[:quota].tolist()
            with _weights(self.passes.model, self._states.checkpoint(first)[0]):
                yield from self.passes.grouped(self.examples, rows)

    def stretches(self, coordinates: LayerCoordinates, basis: Tensor, directions: Tensor | None = None) -> list[Path]:
        """The files of all stretches, first steps first; ``read_steps`` reads them.

        Args:
            coordinates: Of the index.
            basis: ``[m, k]``.
            directions: ``U [k, q]``, along which the steps' Hessians are exact.

        Raises:
            DigestMismatchError: the steps do not come out as recorded.
        """
        hessian = None
        if directions is not None:
            hessian = ResidualHessian(
                self._residual, self.passes.tracked, coordinates, basis, directions, self._states.weights
            )
        total = len(self.run.schedule)
        sensitivity = sensitivity_of(self.run.optimizer, self._states.checkpoint(total)[0])
        sums, done = self.folder / SUMS, total
        if sums.exists():
            kept = load_file(sums)
            done = int(kept.pop("done"))
            sensitivity.restore(kept)
        paths: list[Path] = []
        for first, last in self._states.intervals():
            path = self.folder / f"steps-{first:09d}.safetensors"
            paths.insert(0, path)
            if last > done:
                self.progress(STAGE, total - first, total)
                continue
            linear = self._within_memory(first, last, sensitivity, _Seen(coordinates, basis, hessian))
            write_tensors(path, {f"{n}/{one.name}": getattr(step, one.name) for n, step in linear for one in FIELDS})
            write_tensors(sums, sensitivity.tensors() | {"done": torch.tensor(first)})
        return paths

    def decays(self) -> Tensor:
        """Share of the trained weights that each step's decay leaves, ``[T]``: their mean, where names differ."""
        decay: Mapping[str, float] = getattr(self.run.optimizer, "weight_decay", {})
        sizes = {name: self.passes.model.get_parameter(name).numel() for name in self.run.trainable}
        mean = sum(decay.get(name, 0.0) * size for name, size in sizes.items()) / sum(sizes.values())
        return 1.0 - self.run.learning_rates * mean

    def _within_memory(
        self, first: int, last: int, sensitivity: Sensitivity, seen: _Seen
    ) -> list[tuple[int, LinearStep]]:
        """A stretch: where memory runs out, begun again with half as large micro-batches; not with dropout."""
        before, total = sensitivity.tensors(), len(self.run.schedule)

        def stretch() -> list[tuple[int, LinearStep]]:
            try:
                return self._stretch(first, last, sensitivity, seen)
            finally:
                self._kept.clear()

        def halve() -> None:
            sensitivity.restore(before)
            most = self._states.schedule.largest // 2
            self._states.schedule = self.run.schedule.split(most)
            note = f"memory ran out; going on with {most} examples of a step at once"
            self.progress(STAGE, total - last, total, note)

        return within_memory(stretch, lambda: not self.run.dropout and self._states.schedule.largest > 1, halve)

    def _stretch(self, first: int, last: int, sensitivity: Sensitivity, seen: _Seen) -> list[tuple[int, LinearStep]]:
        """The steps ``first + 1 .. last`` with their numbers, on the processor."""
        set_dropout(self.passes.model, self.run.dropout)
        states, after = self._states.between(first, last), self._states.checkpoint(last)
        total = len(self.run.schedule)
        found = []
        while states:
            number = first + len(states)
            before = states.pop()
            step = self._states.schedule.step(number)
            *kinds, gradient = sensitivity.backward(number, step.learning_rate, before[1], after[1])
            move = StepMove.of(seen.coordinates, self.passes.tracked, kinds, gradient)
            products = None
            if seen.hessian is not None:
                products = seen.hessian.products(step, self._states.batches(step), before[0], move)
            with _weights(self.passes.model, before[0]):
                linear = self._linear(step, seen.coordinates, seen.basis, move, products)
            found.append((number, linear.to(torch.device("cpu"))))
            after = before
            self.progress(STAGE, total - number + 1, total)
        return found

    def _linear(
        self,
        step: Step,
        coordinates: LayerCoordinates,
        basis: Tensor,
        move: StepMove,
        products: ResidualProducts | None,
    ) -> LinearStep:
        parts: dict[str, list[Tensor]] = {name: [] for name in BY_ROW}
        coupling = StepCoupling(self._pairs)
        for number, (rows, shares) in enumerate(zip(step.rows, step.shares, strict=True)):
            source = (shares / step.normalizer).to(self.passes.device)
            weight = source * self._states.weights[rows].to(source)
            with self._objective.micro_batch(step.number, number):
                for row in self.passes.rows([self.examples[place] for place in rows.tolist()]):
                    parts["examples"].append(rows)
                    parts["pulled"].append(coordinates(row.gradients))
                    moved = coordinates.project_weighed(row.gradients, move.kinds)
                    for kind, part in zip(MOVES, moved, strict=False):
                        parts[kind].append(part)
                    parts["curvature"].append(weight * row.root_curvature.pow(2))
                    parts["source"].append(source * row.loss)
                    parts["gradient"].append(weight * row.loss)
                    inner = [found.inner(move.clipped[name]) for name, found in row.gradients.items()]
                    parts["along"].append(torch.stack(inner).sum(0))
                    coupling.add(row.gradients, weight * row.loss)
        projected = {name: parts.pop(name) for name in PROJECTED}
        one = {name: torch.cat(part) for name, part in parts.items() if part}
        # All at once: reading the basis costs more than multiplying by it.
        together = torch.cat([each for part in projected.values() for each in part]) @ basis
        counts = [sum(map(len, part)) for part in projected.values()]
        one |= dict(zip(projected, torch.split(together, counts), strict=True))
        found = coupling.coupled(coordinates, basis, move, seen=products is not None)
        clip, share = self._clipping(step, one["gradient"], one["along"], move.gradient)
        if products is not None:
            one = _with_residual(one, products.rows(found))
        return LinearStep(
            **{**one, "along": one["along"] * share},
            clip=torch.tensor(clip),
            coupled=found.direct,
            coupled_late=found.late,
            coupled_along=found.along * share,
        )

    def _clipping(self, step: Step, coefficients: Tensor, along: Tensor, gradient: Parameters) -> tuple[float, float]:
        """The factor; and by what inner products with the gradient after clipping become ones with that before it, over
        its squared norm."""
        squared = sum(float(part.double().pow(2).sum()) for part in gradient.values())
        recorded = float(self.run.clip_factors[step.number - 1])
        if self.run.max_grad_norm is None or not squared:
            return 1.0, 0.0
        # A Trainer's record does not say; the rows' sum is the gradient that was clipped.
        factor = recorded if recorded == recorded else squared / float((coefficients * along).sum())
        factor = min(factor, 1.0)
        return factor, factor / squared


def _with_residual(one: Mapping[str, Tensor], residual: ResidualRows) -> dict[str, Tensor]:
    """The rows of a step, and after them those of its residual Hessian, which no example weighs."""
    count = len(residual.pulled)
    nothing = residual.along.new_zeros(count)
    more = {
        "examples": torch.full((count,), NOBODY, dtype=one["examples"].dtype),
        "pulled": residual.pulled,
        **dict(zip(MOVES, residual.moves, strict=False)),
        "curvature": nothing + 1,
        "source": nothing,
        "gradient": nothing,
        "along": residual.along,
    }
    return {name: torch.cat([tensor, more[name]]) if name in more else tensor for name, tensor in one.items()}


@contextlib.contextmanager
def _weights(model: nn.Module, parameters: Parameters) -> Iterator[None]:
    """The model in evaluation mode with other weights, while it lasts."""
    was_training = model.training
    model.eval()
    try:
        with parameters_put_back(model, list(parameters)):
            put_parameters(model, parameters)
            yield
    finally:
        model.train(was_training)


def read_steps(path: Path) -> list[LinearStep]:
    """The steps of one stretch, in their order."""
    found = load_file(path)
    numbers = sorted({int(key.partition("/")[0]) for key in found})
    return [LinearStep(**{one.name: found[f"{number}/{one.name}"] for one in FIELDS}) for number in numbers]
