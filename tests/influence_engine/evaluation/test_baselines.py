"""Promises: baselines are what their formulas say, over exact gradients, and signed by label."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from influence_engine.evaluation.baselines import (
    bm25,
    embedding_similarity,
    gradient_products,
    signed_by_label,
    training_losses,
)
from influence_engine.gradients import track


def test_bm25_is_the_formula_worked_by_hand() -> None:
    scores = bm25(["Good film", "bad bad film, long"], ["bad!", "film", "unknown"])
    mean_length = 3.0
    rarity_bad, rarity_film = math.log(1 + 1.5 / 1.5), math.log(1 + 0.5 / 2.5)
    expected = rarity_bad * 2 * 2.5 / (2 + 1.5 * (0.25 + 0.75 * 4 / mean_length))
    assert float(scores[0, 0]) == 0.0
    assert float(scores[0, 1]) == pytest.approx(expected)
    assert float(scores[1, 0]) == pytest.approx(rarity_film * 2.5 / (1 + 1.5 * (0.25 + 0.75 * 2 / mean_length)))
    assert float(scores[2].sum()) == 0.0


def test_a_similar_example_of_another_label_opposes() -> None:
    train, queries = [{"label": "a"}, {"label": "b"}], [{"label": "b"}]
    signed = signed_by_label(torch.tensor([[0.7, 0.2]]), train, queries, "label")
    torch.testing.assert_close(signed, torch.tensor([[-0.7, 0.2]]))


def test_gradient_products_equal_autograd_one_example_at_a_time(
    vector_model: nn.Module, vector_task: Any, vector_train: Any, vector_queries: Any
) -> None:
    parameters = [p for p in vector_model.parameters() if p.requires_grad]

    def flat(example: Any, *, loss: bool) -> torch.Tensor:
        batch = vector_task.collate([example])
        outputs = vector_task.outputs(vector_model, batch)
        scalar = vector_task.loss(outputs, batch) if loss else vector_task.measurement(outputs, batch)
        return torch.cat([g.flatten() for g in torch.autograd.grad(scalar.sum(), parameters)])

    losses = torch.stack([flat(example, loss=True) for example in vector_train])
    measured = torch.stack([flat(example, loss=False) for example in vector_queries])
    dot, cosine = gradient_products(vector_model, vector_task, track(vector_model), vector_train, vector_queries)
    expected = -measured @ losses.T
    torch.testing.assert_close(dot, expected, rtol=1e-4, atol=1e-5)
    scale = measured.norm(dim=1)[:, None] * losses.norm(dim=1)
    torch.testing.assert_close(cosine, expected / scale, rtol=1e-4, atol=1e-5)


def test_training_losses_are_those_of_the_task(vector_model: nn.Module, vector_task: Any, vector_train: Any) -> None:
    batch = vector_task.collate(vector_train)
    expected = vector_task.loss(vector_task.outputs(vector_model, batch), batch).detach()
    found = training_losses(vector_model, vector_task, vector_train)
    torch.testing.assert_close(found, expected.double(), rtol=1e-5, atol=1e-6)


def test_embeddings_are_the_last_hidden_states_mean_without_padding(
    task: Any, make_model: Callable[..., Any], make_examples: Callable[..., Any]
) -> None:
    base, queries, train = make_model(), make_examples(3, seed=1), make_examples(40)
    found = embedding_similarity(base, task, train, queries)
    assert found.shape == (3, 40)
    alone = []
    for example in (queries[1], train[7]):  # one by one there is no padding
        batch = task.collate([example])
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        with torch.no_grad():
            alone.append(base.base_model(**inputs).last_hidden_state.mean(1)[0])
    expected = torch.cosine_similarity(alone[0], alone[1], dim=0)
    torch.testing.assert_close(found[1, 7], expected, rtol=1e-4, atol=1e-5)


def test_a_module_of_ones_own_is_embedded_before_its_last_linear_layer(
    vector_model: nn.Module, vector_task: Any, vector_train: Any, vector_queries: Any
) -> None:
    assert isinstance(vector_model, nn.Sequential)
    with torch.no_grad():
        one, other = (
            nn.functional.normalize(vector_model[:-1](vector_task.collate(examples)["x"]), dim=1)
            for examples in (vector_queries, vector_train)
        )
    found = embedding_similarity(vector_model, vector_task, vector_train, vector_queries)
    torch.testing.assert_close(found, one @ other.T, rtol=1e-4, atol=1e-5)
