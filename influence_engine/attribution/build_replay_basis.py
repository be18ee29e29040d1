"""Makes the replay basis of an index: directions in parameter space, each replayed once, stored beside the vectors.

A direction ``d`` is replayed by reverse differentiation of ``<d, theta_T>`` through the recorded optimiser steps with
respect to every example's weight (``influence_engine.replay``). How directions are chosen and correct the index's
estimates is derived in ``influence_engine.index.replay_basis``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

import torch
from torch import Tensor

from influence_engine.attribution.attributor import Attributor
from influence_engine.errors import DigestMismatchError, SettingsError
from influence_engine.index.replay_basis import FEWEST_DIRECTIONS, ReplayBasis, choose_directions, fit_basis
from influence_engine.options import with_defaults
from influence_engine.replay import replay
from influence_engine.replay.rows import REPLAY_DEFAULTS
from influence_engine.tasks import Example, batches_of_like_size
from influence_engine.training import Run
from influence_engine.training.execution_options import RENAMED, ExecutionOptions

DAMPING_FACTORS = (0.1, 0.18, 0.32, 0.56, 1.0, 1.8, 3.2, 5.6, 10.0)
"""Multiples of the index's damping: the one whose estimated rows agree best with the replayed rows is taken."""

_BATCH = 32


def build_basis(
    run: Run,
    attributor: Attributor,
    train: Sequence[Example],
    held_out: Sequence[Example],
    width: int,
    *,
    at_once: int = 1,
    **options: Unpack[ExecutionOptions],
) -> ReplayBasis:
    """Replays ``width`` directions and stores them with the attributor's index, for its ``replayed`` tier.

    Args:
        run: The recorded run that the index was built from.
        attributor: Attributor of the run's model and that index; it answers ``replayed`` afterwards.
        train: The run's training examples.
        held_out: Inputs like those that will be asked about; some hundreds, never those that are evaluated.
        width: How many directions, at least 8.
        at_once: Directions in one backward pass; more take more memory.
        options: ``ExecutionOptions``; by default ``keep_in`` is a folder beside the index's versions, ``device`` the
            attributor's, and ``save_every_s`` 60.

    Raises:
        DigestMismatchError: the index is not of this run.
        SettingsError: too few directions, or more than the held-out inputs span.
        RecordError: the run cannot be replayed.
    """
    defaults: ExecutionOptions = {**REPLAY_DEFAULTS, "device": str(attributor.device)}
    chosen = with_defaults(build_basis, defaults, options, renamed=RENAMED)
    if width < FEWEST_DIRECTIONS:
        raise SettingsError(
            f"{width} directions are too few to call an answer replayed; ask for at least {FEWEST_DIRECTIONS}",
            field="directions",
        )
    index = attributor.index
    if index.manifest.digests.get("model") != run.digests["model"] or index.example_ids != run.example_ids:
        raise DigestMismatchError(f"the index in {index.folder} is not of the run in {run.folder}", field="run")
    factors = DAMPING_FACTORS if index.manifest.approximation == "final" else (1.0,)
    dampings = [factor * index.manifest.damping for factor in factors]
    estimated = attributor.scores_by_damping(held_out, dampings)
    coefficients = choose_directions(estimated[index.manifest.damping], width)
    directions = measurement_directions(attributor, held_out, coefficients, run.trainable)
    chosen["keep_in"] = chosen["keep_in"] or index.folder.parent.parent / "replays"
    exact = replay(run, attributor.task, train, directions, at_once=at_once, **chosen)
    basis = fit_basis(exact, {damping: coefficients @ scores for damping, scores in estimated.items()})
    index.save_basis(basis)
    return basis


def measurement_directions(
    attributor: Attributor, queries: Sequence[Example], coefficients: Tensor, names: Sequence[str]
) -> dict[str, Tensor]:
    """``sum_v coefficients_jv grad f_v`` by parameter name, ``[K, *shape]``, on the CPU.

    Args:
        attributor: Attributor of the model that measures.
        queries: ``V`` of them; one that names no target is measured on what the model predicts.
        coefficients: ``[K, V]``.
        names: Names of the trained parameters.
    """
    parameters = [attributor.model.get_parameter(name) for name in names]
    totals = [torch.zeros(len(coefficients), *parameter.shape) for parameter in parameters]
    for places in batches_of_like_size(attributor.task, queries, _BATCH):
        measured = attributor.measure([queries[place] for place in places])
        weights = coefficients[:, places].to(measured)
        for row, weight in enumerate(weights):
            parts = torch.autograd.grad(
                measured,
                parameters,
                weight,
                retain_graph=row + 1 < len(weights),
                materialize_grads=True,
                allow_unused=True,
            )
            for total, part in zip(totals, parts, strict=True):
                total[row] += part.cpu()
    return dict(zip(names, totals, strict=True))
