"""Promises: with every direction an index that follows plain gradient descent says what exact replay says, whatever the
network; with a few it comes closer to replay, for Adam, adapters, embeddings, dropout and clipping, too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from influence_engine import FinetuneSettings, Run, finetune
from influence_engine.index.residual_hessian import leading_directions
from influence_engine.training import LoraSettings
from tests.influence_engine.conftest import make_network, make_vectors
from tests.influence_engine.following import Network, attributed, from_transformers, recorded, replayed

DESCENT: dict[str, dict[str, Any]] = {
    "momentum": {"max_grad_norm": None},
    "clipping": {"max_grad_norm": 0.3},
    "accumulation": {"accumulation": 2, "max_grad_norm": 0.3},
}
TRANSFORMER: dict[str, dict[str, Any]] = {
    "all weights": {},
    "adapters": {"trainable": "lora", "lora": LoraSettings(r=2, alpha=32.0)},
    "dropout": {"dropout": 0.1, "seed": 4},
}


def off(
    run: Run, task: Any, train: Any, queries: Any, folder: Path, directions: int, network: Network = from_transformers
) -> float:
    """Distance of an index's scores from exact replay, relative to it."""
    attributor = attributed(run, task, train, folder, network, hessian_directions=directions)
    exact = replayed(attributor, run, train, queries, network)
    return float((attributor.scores(queries) - exact).norm() / exact.norm())


@pytest.mark.parametrize("variant", DESCENT)
def test_all_directions_are_exact_replay_under_gradient_descent(
    variant: str, vector_task: Any, vector_queries: Any, tmp_path: Path
) -> None:
    train = make_vectors(240, seed=1, prefix="train-")
    common = {"trainable": "all", "optimizer": "sgd", "momentum": 0.8, "learning_rate": 0.1, "weight_decay": 0.0}
    settings = FinetuneSettings(**{**common, "epochs": 2, "batch_size": 24, **DESCENT[variant]})
    finetune(vector_task, make_network(), train, settings=settings, record_to=tmp_path / "run")
    run = Run.open(tmp_path / "run")

    without = off(run, vector_task, train, vector_queries, tmp_path / "without", 0, make_network)
    exact = off(run, vector_task, train, vector_queries, tmp_path / "all", 256, make_network)

    assert exact < 1e-3 < without


@pytest.mark.parametrize("variant", TRANSFORMER)
def test_a_few_directions_come_closer_to_replay(
    task: Any, make_model: Callable[..., nn.Module], make_examples: Callable[..., Any], tmp_path: Path, variant: str
) -> None:
    train, queries = make_examples(40), make_examples(6, seed=1)
    run = recorded(task, make_model(), train, tmp_path / "run", **TRANSFORMER[variant])
    without, some = (off(run, task, train, queries, tmp_path / f"index-{width}", width) for width in (0, 40))
    assert some < 0.95 * without


def test_leading_directions_are_orthonormal_and_no_more_than_there_are() -> None:
    vectors = torch.randn(9, 3) @ torch.randn(3, 7)
    torch.testing.assert_close(leading_directions(vectors, 7), torch.eye(7))
    found = leading_directions(vectors, 5)
    assert found.shape == (7, 3)
    torch.testing.assert_close(found.T @ found, torch.eye(3), rtol=0, atol=1e-5)
