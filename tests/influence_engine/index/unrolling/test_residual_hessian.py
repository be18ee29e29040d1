"""Promises: with every direction an index of plain gradient descent gives the scores of exact replay, whatever
the network; with a few a step's Hessian is exact for displacements along them and for what others do to gradients along
them, what is added beside them has no negative eigenvalues, and the index comes closer to replay, for Adam, adapters,
embeddings and dropout, too."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from influence_engine import FinetuneSettings, Run, finetune
from influence_engine.curvature import identity_preconditioner
from influence_engine.index.building.stages import IndexBuilder
from influence_engine.index.unrolling.linearization import NO_EXAMPLE, LinearisedStep, StepLineariser, read_steps
from influence_engine.index.unrolling.residual_hessian import leading_directions
from influence_engine.progress import silent
from influence_engine.training import LoraSettings
from tests.influence_engine.building import build_context
from tests.influence_engine.following import (
    SINGLE,
    Network,
    adapted_network,
    attributed,
    from_transformers,
    recorded,
    replayed,
)
from tests.influence_engine.vectors import make_network, make_vectors

DESCENT: dict[str, dict[str, Any]] = {
    "momentum": {"max_grad_norm": None},
    "clipping": {"max_grad_norm": 0.3},
    "accumulation": {"accumulation": 2, "max_grad_norm": 0.3},
}
TRANSFORMER: dict[str, tuple[dict[str, Any], int]] = {
    "all weights": ({}, 1),
    "adapters": ({"trainable": "lora", "lora": LoraSettings(r=2, alpha=32.0)}, 3),
    "dropout": ({"dropout": 0.1}, 1),
}
"""Settings, and layers: of few weights, few directions say more."""


def off(
    run: Run,
    task: Any,
    train: Any,
    queries: Any,
    folder: Path,
    directions: tuple[int, int],
    network: Network = from_transformers,
) -> list[float]:
    """Distances of two indexes' scores from exact replay, relative to it."""
    attributors = [
        attributed(run, task, train, folder / str(width), network, hessian_directions=width) for width in directions
    ]
    exact = replayed(attributors[0], run, train, queries, network)
    return [float((one.scores(queries) - exact).norm() / exact.norm()) for one in attributors]


@pytest.mark.parametrize("variant", DESCENT)
def test_all_directions_are_exact_replay_under_gradient_descent(
    variant: str, vector_task: Any, vector_queries: Any, tmp_path: Path
) -> None:
    train = make_vectors(240, seed=1, prefix="train-")
    common = {"trainable": "all", "optimizer": "sgd", "momentum": 0.8, "learning_rate": 0.1, "weight_decay": 0.0}
    settings = FinetuneSettings(**{**common, "epochs": 2, "batch_size": 24, **DESCENT[variant]})
    finetune(vector_task, make_network(), train, settings=settings, record_to=tmp_path / "run")
    run = Run.open(tmp_path / "run")

    without, exact = off(run, vector_task, train, vector_queries, tmp_path, (0, 256), make_network)

    assert exact < 1e-3 < without


@pytest.mark.parametrize("variant", TRANSFORMER)
def test_a_few_directions_come_closer_to_replay(
    task: Any, make_model: Callable[..., nn.Module], make_examples: Callable[..., Any], tmp_path: Path, variant: str
) -> None:
    train, queries = make_examples(40), make_examples(6, seed=1)
    settings, layers = TRANSFORMER[variant]
    run = recorded(task, make_model(num_hidden_layers=layers), train, tmp_path / "run", **settings, seed=3)
    without, some = off(run, task, train, queries, tmp_path / "index", (0, 16))
    assert some < 0.95 * without


def residual(step: LinearisedStep) -> Tensor:
    """The approximated residual Hessian of a step, ``[k, k]``: displacements to the final weights' displacement."""
    rows = step.examples == NO_EXAMPLE
    return step.pulled[rows].T @ step.direct[rows] + (step.cross_direct if len(step.cross_direct) else 0.0)


Along = Callable[[int | None, str, Network], tuple[Tensor, list[LinearisedStep]]]


@pytest.fixture
def along(vector_task: Any, tmp_path: Path) -> Along:
    """``along(width, optimizer, network)``: directions ``[k, width]``, or all, and a run's steps, linearised."""
    train = make_vectors(48, seed=1, prefix="train-")

    def made(width: int | None, optimizer: str, network: Network) -> tuple[Tensor, list[LinearisedStep]]:
        rate = {"sgd": 0.1, "adamw": 1e-2}[optimizer]
        common = {"trainable": "all", "epochs": 2, "batch_size": 12, "weight_decay": 0.0, "max_grad_norm": None}
        settings = FinetuneSettings.model_validate({**common, "optimizer": optimizer, "learning_rate": rate})
        model = network()
        finetune(vector_task, model, train, settings=settings, record_to=tmp_path / "run", reuse=True)
        context = build_context(model, vector_task, train, tmp_path, SINGLE)
        passes = context.passes
        coordinates = IndexBuilder(context, identity_preconditioner(passes.tracked)).layers()
        size = coordinates.size
        directions = torch.eye(size)
        if width is not None:
            generator = torch.Generator().manual_seed(width)
            directions = torch.linalg.qr(torch.randn(size, width, generator=generator))[0]
        folder = tmp_path / f"steps-{width}"
        folder.mkdir()
        paths = StepLineariser(Run.open(tmp_path / "run"), passes, train, folder, silent).linearise(
            coordinates, torch.eye(size), directions
        )
        return directions, [step for path in paths for step in read_steps(path)]

    return made


@pytest.mark.parametrize(
    ("network", "width"), [(make_network, 1), (make_network, 12), (adapted_network, 1), (adapted_network, 3)]
)
def test_along_a_few_directions_a_step_s_hessian_is_exact_both_ways_and_elsewhere_nothing_negative_is_added(
    along: Along, network: Network, width: int
) -> None:
    every, whole = along(None, "sgd", network)
    directions, some = along(width, "sgd", network)
    rest = every - directions @ directions.T
    for one, other in zip(whole, some, strict=True):
        exact, found = residual(one), residual(other)
        size = float(exact.abs().max())
        near = functools.partial(torch.testing.assert_close, rtol=1e-3, atol=1e-4 * size)
        near(exact, exact.T)
        near(found, found.T)
        near(directions.T @ found, directions.T @ exact)
        near(found @ directions, exact @ directions)
        cross_terms = other.cross_direct if len(other.cross_direct) else torch.zeros_like(exact)
        added = torch.linalg.eigvalsh(rest @ (found - cross_terms) @ rest)
        assert float(added[0]) > -1e-4 * size
        assert int((added > 1e-4 * size).sum()) <= width
        assert float((rest @ exact @ rest).norm()) > 0.05 * float(exact.norm())


def test_under_adam_weights_are_displaced_along_the_directions_by_changes_known_only_along_them(
    along: Along,
) -> None:
    directions, steps = along(5, "adamw", make_network)
    for step in steps:
        least, beside = torch.split(step.direct[step.examples == NO_EXAMPLE], 5)
        torch.testing.assert_close(least, least @ directions @ directions.T, rtol=1e-3, atol=1e-6)
        assert float((beside - beside @ directions @ directions.T).norm()) > 0.1 * float(beside.norm())


def test_leading_directions_are_orthonormal_and_no_more_than_there_are() -> None:
    vectors = torch.randn(9, 3) @ torch.randn(3, 7)
    torch.testing.assert_close(leading_directions(vectors, 7), torch.eye(7))
    found = leading_directions(vectors, 5)
    assert found.shape == (7, 3)
    torch.testing.assert_close(found.T @ found, torch.eye(3), rtol=0, atol=1e-5)
