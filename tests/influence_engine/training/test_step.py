"""A training step is the objective's gradient and an update, and can be differentiated with respect to the weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from influence_engine.errors import ModelError
from influence_engine.tasks import TextClassification
from influence_engine.training.execution import collate_step
from influence_engine.training.optimizers import SGD, AdamW, Optimizer, TrainingState
from influence_engine.training.schedule import Step, plan_schedule
from influence_engine.training.settings import FinetuneSettings
from influence_engine.training.step import (
    Objective,
    UpdateRule,
    gradient,
    put_parameters,
    set_dropout,
    trained_parameters,
    training_step,
)

CPU = torch.device("cpu")


def one_step(batches: list[list[int]], normalizer: float, shares: list[list[float]] | None = None) -> Step:
    counted = shares or [[1.0] * len(rows) for rows in batches]
    return Step(1, [torch.tensor(r) for r in batches], [torch.tensor(s) for s in counted], normalizer, 0.1, None)


def names_of(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_parameters()]


def test_the_gradient_is_that_of_the_weighted_sum_over_all_micro_batches(
    task: TextClassification, make_model: Callable[..., nn.Module], make_examples: Callable[..., Any]
) -> None:
    model, examples = make_model(), make_examples(5)
    step = one_step([[3, 0], [4, 1, 2]], 7.0, [[1.0, 2.0], [3.0, 4.0, 5.0]])
    weights = torch.tensor([1.0, 0.5, 1.0, 0.0, 2.0])

    parameters = {name: value.requires_grad_() for name, value in trained_parameters(model, names_of(model)).items()}
    found, loss, losses = gradient(
        Objective(model, task), step, collate_step(task, examples, step, CPU), parameters, weights
    )

    share = dict(zip([3, 0, 4, 1, 2], [1.0, 2.0, 3.0, 4.0, 5.0], strict=True))
    total = torch.zeros(())
    for row, example in enumerate(examples):
        batch = task.collate([example])
        total = total + weights[row] * share[row] * task.loss(task.outputs(model, batch), batch)[0] / 7.0
    total.backward()
    torch.testing.assert_close(loss, total.detach())
    assert [len(each) for each in losses] == [2, 3]
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-6)


def test_accumulated_micro_batches_are_one_large_batch(
    task: TextClassification, make_model: Callable[..., nn.Module], make_examples: Callable[..., Any]
) -> None:
    model, examples = make_model(), make_examples(6)
    parameters = {name: value.requires_grad_() for name, value in trained_parameters(model, names_of(model)).items()}

    def found(step: Step) -> dict[str, Tensor]:
        return gradient(Objective(model, task), step, collate_step(task, examples, step, CPU), parameters)[0]

    parts, whole = found(one_step([[0, 1], [2, 3], [4, 5]], 6.0)), found(one_step([[0, 1, 2, 3, 4, 5]], 6.0))

    for name in parameters:
        torch.testing.assert_close(parts[name], whole[name], rtol=1e-4, atol=1e-6)


def test_frozen_weights_get_no_gradient_and_stay(
    task: TextClassification, make_model: Callable[..., nn.Module], make_examples: Callable[..., Any]
) -> None:
    model, examples = make_model(), make_examples(4)
    model.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trained = ["classifier.weight", "classifier.bias"]
    step, optimizer = one_step([[0, 1, 2, 3]], 4.0), SGD()
    parameters = trained_parameters(model, trained)

    result = training_step(
        UpdateRule(Objective(model, task), optimizer),
        step,
        collate_step(task, examples, step, CPU),
        TrainingState(parameters, optimizer.initial_state(parameters)),
    )

    assert list(result.state.parameters) == trained
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_parameter_that_the_loss_does_not_depend_on_has_gradient_zero(make_examples: Callable[..., Any]) -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used = nn.Parameter(torch.ones(1))
            self.unused = nn.Parameter(torch.ones(1))

    class Line:
        def collate(self, examples: Any) -> dict[str, Tensor]:
            return {"x": torch.ones(len(examples))}

        def outputs(self, model: Any, batch: Any) -> Tensor:
            return batch["x"] * model.used

        def loss(self, outputs: Tensor, batch: Any) -> Tensor:
            return outputs

        def measurement(self, outputs: Tensor, batch: Any) -> Tensor:
            return outputs

    model, task = Unused(), Line()
    parameters = {name: value.requires_grad_() for name, value in trained_parameters(model, names_of(model)).items()}
    step = one_step([[0, 1]], 2.0)

    found, _, _ = gradient(Objective(model, task), step, collate_step(task, [{}, {}], step, CPU), parameters)

    assert float(found["used"]) == 1.0
    assert float(found["unused"]) == 0.0


@pytest.mark.parametrize(
    "optimizer",
    [
        AdamW(epsilon=1e-2, weight_decay={"classifier.weight": 0.1}),
        SGD(momentum=0.9, weight_decay={"classifier.weight": 0.1}),
    ],
)
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_several_steps_differentiate_to_what_finite_differences_of_the_weights_give(
    task: TextClassification,
    make_model: Callable[..., nn.Module],
    make_examples: Callable[..., Any],
    optimizer: Optimizer,
    dropout: float,
) -> None:
    model, examples = make_model().double(), make_examples(8)
    model.requires_grad_(False)
    set_dropout(model, dropout)
    settings = FinetuneSettings(epochs=2, batch_size=2, accumulation=2, dropout=dropout, learning_rate=0.05)
    schedule = plan_schedule(settings, len(examples))
    trained = [name for name in names_of(model) if "layer.2." in name or "classifier" in name]
    direction = torch.randn(2, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def measured(weights: Tensor, differentiable: bool) -> Tensor:
        parameters = trained_parameters(model, trained)
        state = TrainingState(parameters, optimizer.initial_state(parameters))
        rule = UpdateRule(Objective(model, task), optimizer, max_grad_norm=0.3)
        for step in schedule.steps():
            batches = collate_step(task, examples, step, CPU)
            state = training_step(rule, step, batches, state, weights=weights, differentiable=differentiable).state
        return (state.parameters["classifier.weight"] * direction).sum()

    ones = torch.ones(len(examples), dtype=torch.float64)
    weights = ones.clone().requires_grad_()
    end = measured(weights, differentiable=True)
    (exact,) = torch.autograd.grad(end, weights)

    torch.testing.assert_close(end.detach(), measured(ones, differentiable=False), rtol=1e-12, atol=1e-12)
    for row in range(0, len(examples), 3):
        nudge = torch.zeros_like(ones)
        nudge[row] = 1e-5
        slope = (measured(ones + nudge, False) - measured(ones - nudge, False)) / 2e-5
        assert float(exact[row]) == pytest.approx(float(slope), rel=1e-4, abs=1e-7)


def test_a_seeded_step_drops_the_same_units_again_and_leaves_the_callers_random_state_alone(
    task: TextClassification, make_model: Callable[..., nn.Module], make_examples: Callable[..., Any]
) -> None:
    model, examples = make_model(), make_examples(4)
    set_dropout(model, 0.3)
    parameters = trained_parameters(model, names_of(model))
    optimizer = SGD()

    def loss(seed: int) -> float:
        step = Step(1, [torch.arange(4)], [torch.ones(4)], 4.0, 0.1, seed)
        batches = collate_step(task, examples, step, CPU)
        state = TrainingState(parameters, optimizer.initial_state(parameters))
        return float(training_step(UpdateRule(Objective(model, task), optimizer), step, batches, state).loss)

    torch.manual_seed(9)
    expected = torch.rand(1)
    torch.manual_seed(9)
    first, again, other = loss(1), loss(1), loss(2)

    assert first == again != other
    assert torch.equal(torch.rand(1), expected)


def test_dropout_of_zero_is_evaluation_mode_and_of_more_reaches_every_layer(
    make_model: Callable[..., nn.Module],
) -> None:
    model = make_model(dropout=0.1)
    model.norm = nn.BatchNorm1d(2)
    model.classifier.attention_dropout = 0.1

    set_dropout(model, 0.25)
    modes = {type(module).__name__: module.training for module in model.modules()}
    assert {module.p for module in model.modules() if isinstance(module, nn.Dropout)} == {0.25}
    assert model.classifier.attention_dropout == 0.25
    assert (modes["Linear"], modes["BatchNorm1d"]) == (True, False)

    set_dropout(model, 0.0)
    assert not any(module.training for module in model.modules())


def test_parameters_are_copied_out_and_in(make_model: Callable[..., nn.Module]) -> None:
    model = make_model()
    copied = trained_parameters(model, ["classifier.bias"])
    copied["classifier.bias"] += 1.0

    assert not torch.equal(model.classifier.bias, copied["classifier.bias"])
    put_parameters(model, copied)
    assert torch.equal(model.classifier.bias, copied["classifier.bias"])
    with pytest.raises(ModelError, match="no parameter 'nothing'"):
        trained_parameters(model, ["nothing"])
