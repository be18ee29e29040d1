"""Promise: a pass that yields per-example gradients takes no product that only a weight's gradient needs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from influence_engine.curvature.gradient_passes import GradientPasses
from influence_engine.gradients import track
from influence_engine.models.first_token_head import first_position_only
from influence_engine.models.loading import add_lora
from influence_engine.models.trainable import choose_trainable
from influence_engine.tasks import Batch, Task


def operations(work: Callable[[], Any]) -> int:
    """Floating point operations of all matrix products and convolutions."""
    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


def operations_of_weights(model: nn.Module, run: Callable[[], Any]) -> int:
    """Of the gradients of trained weights, counted at each call of a linear layer: as many as of its outputs."""
    found: list[int] = []

    def note(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if module.get_parameter("weight").requires_grad:
            found.append(2 * args[0].numel() * module.get_parameter("weight").shape[0])

    handles = [one.register_forward_hook(note) for one in model.modules() if isinstance(one, nn.Linear)]
    run()
    for handle in handles:
        handle.remove()
    return sum(found)


def adapted(model: nn.Module) -> nn.Module:
    adapters = add_lora(model, r=2, alpha=4.0)
    choose_trainable(adapters, "lora")
    return adapters


def upper(model: nn.Module) -> nn.Module:
    choose_trainable(model, 1)
    return model


@pytest.fixture(params=["all", "its upper layer", "adapters"])
def model(request: pytest.FixtureRequest, make_model: Callable[..., nn.Module]) -> nn.Module:
    made = make_model()
    return {"all": lambda one: one, "its upper layer": upper, "adapters": adapted}[request.param](made)


@pytest.fixture
def examples(make_examples: Callable[..., Any]) -> Any:
    return make_examples(5)


@pytest.fixture
def batch(task: Task, examples: Any) -> Batch:
    return task.collate(examples)


def passes(model: nn.Module, task: Task) -> GradientPasses:
    return GradientPasses(model, task, track(model), batch_tokens=None, draws=1, seed=0)


def test_a_pass_takes_an_ordinary_backward_less_the_products_of_weight_gradients(
    model: nn.Module, task: Any, examples: Any, batch: Batch
) -> None:
    def forward() -> Any:
        with first_position_only(model):
            return task.outputs(model, batch)

    ahead = operations(forward)
    outputs = forward()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    ordinary = operations(lambda: torch.autograd.grad(task.loss(outputs, batch).sum(), trained))
    of_weights = operations_of_weights(model, forward)

    taken = operations(lambda: passes(model, task).loss_gradients(examples))

    assert of_weights > 0
    assert taken == ahead + ordinary - of_weights


def test_every_further_row_takes_one_more_such_backward_and_no_forward(
    model: nn.Module, task: Any, examples: Any
) -> None:
    with passes(model, task).trace(examples) as trace:
        with first_position_only(model):
            ahead = operations(lambda: task.outputs(model, trace.batch))
        direction = torch.ones_like(trace.outputs)
        back = operations(lambda: trace.gradients_along(trace.outputs, direction, keep_graph=True))
    rows = 0

    def every_row() -> None:
        nonlocal rows
        rows = sum(1 for _ in passes(model, task).rows(examples))

    taken = operations(every_row)

    assert rows >= 1
    assert back > 0
    assert taken == ahead + rows * back


def test_no_parameter_gets_a_gradient_and_one_that_it_had_is_left(model: nn.Module, task: Any, examples: Any) -> None:
    first, *others = [parameter for parameter in model.parameters() if parameter.requires_grad]
    first.grad = torch.full_like(first, 7.0)

    passes(model, task).loss_gradients(examples)
    for _ in passes(model, task).rows(examples):
        pass

    assert torch.equal(first.grad, torch.full_like(first, 7.0))
    assert all(parameter.grad is None and parameter.requires_grad for parameter in others)
