"""Promise: a batch is as large as asked for, or as what is fast and fits."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import nn

from influence_engine.curvature.gradient_passes import FAST_TOKENS, GradientPasses
from influence_engine.gradients import track
from influence_engine.resources import free_memory
from influence_engine.tasks import example_sizes


@pytest.fixture
def passes(task: Any, make_model: Callable[..., nn.Module]) -> Callable[[int | None], GradientPasses]:
    def make(batch_tokens: int | None) -> GradientPasses:
        model = make_model()
        return GradientPasses(model, task, track(model), batch_tokens=batch_tokens, draws=1, seed=0)

    return make


@pytest.mark.parametrize("batch_tokens", [None, 20, 1])
def test_no_batch_is_larger_than_allowed_but_for_a_single_example(
    passes: Callable[[int | None], GradientPasses],
    task: Any,
    make_examples: Callable[..., Any],
    batch_tokens: int | None,
) -> None:
    examples = make_examples(600)
    sizes = example_sizes(task, examples)

    found = passes(batch_tokens).batches(examples)

    assert sorted(place for places in found for place in places) == list(range(len(examples)))
    most = batch_tokens or FAST_TOKENS["cpu"]
    padded = [max(sizes[place] for place in places) * len(places) for places in found]
    assert all(one <= most or len(places) == 1 for one, places in zip(padded, found, strict=True))
    assert max(padded) > most / 2


def test_free_memory_is_what_the_process_may_still_have(
    memory_up_to: Callable[[int], AbstractContextManager[None]],
) -> None:
    with memory_up_to(2**30):
        assert 0 < free_memory(torch.device("cpu")) < 2**31
