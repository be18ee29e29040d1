"""Promise: every supported layer's per-example gradients equal a for-loop of plain autograd, over all shapes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from influence_engine.errors import ModelError
from influence_engine.gradients import tracing, track
from influence_engine.tasks import Batch, Example

torch.manual_seed(0)


class SquaredOutputs:
    """Loss and measurement are smooth functions of all outputs; inputs come ready as tensors."""

    def collate(self, examples: Sequence[Example]) -> Batch:
        return {"x": torch.stack([example["x"] for example in examples])}

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        return model(batch["x"])

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        return outputs.flatten(1).sin().pow(2).sum(1)

    def measurement(self, outputs: Tensor, batch: Batch) -> Tensor:
        return outputs.flatten(1).cos().sum(1)


class Positions(nn.Module):
    """Looks positions up once for the whole batch, as BERT does."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 6, padding_idx=0)
        self.positions = nn.Embedding(9, 6)
        self.out = nn.Linear(6, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(torch.tanh(self.words(ids) + self.positions(torch.arange(ids.shape[1])[None])))


class Twice(nn.Module):
    """One layer that runs twice in a forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Linear(5, 5)
        self.norm = nn.LayerNorm(5)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.shared(torch.relu_(self.shared(x))))


class RootMeanSquareRMSNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width) + 0.5)
        self.variance_epsilon = 1e-5

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))


def batch_norm_with_statistics() -> nn.Module:
    norm = nn.BatchNorm2d(6)
    norm.running_mean = torch.randn(6)
    norm.running_var = torch.rand(6) + 0.5
    nn.init.normal_(norm.weight)
    return norm


MODELS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "linear": (lambda: nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)), (5,)),
    "linear over positions": (lambda: nn.Sequential(nn.Linear(5, 4), nn.GELU(), nn.Linear(4, 2)), (7, 5)),
    "linear without bias": (lambda: nn.Sequential(nn.Linear(5, 4, bias=False), nn.Tanh(), nn.Linear(4, 2)), (3, 5)),
    "in-place activation after the first layer": (lambda: nn.Sequential(nn.Linear(5, 4), nn.ReLU(inplace=True)), (5,)),
    "Conv1D of GPT-2": (lambda: nn.Sequential(Conv1D(4, 5), nn.Tanh(), Conv1D(2, 4)), (3, 5)),
    "layer norm": (lambda: nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6), nn.Linear(6, 2)), (4, 5)),
    "RMS norm": (lambda: nn.Sequential(nn.Linear(5, 6), RootMeanSquareRMSNorm(6)), (4, 5)),
    "group norm": (lambda: nn.Sequential(nn.Conv2d(3, 6, 3), nn.GroupNorm(2, 6)), (3, 6, 5)),
    "batch norm in evaluation mode": (
        lambda: nn.Sequential(nn.Conv2d(3, 6, 1), batch_norm_with_statistics()),
        (3, 4, 4),
    ),
    "convolution": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.ReLU6(inplace=True)), (3, 7, 6)),
    "dilated convolution": (lambda: nn.Sequential(nn.Conv2d(2, 4, (3, 2), dilation=2, bias=False)), (2, 8, 7)),
    "same padding": (lambda: nn.Sequential(nn.Conv2d(2, 4, (4, 3), padding="same")), (2, 6, 5)),
    "depthwise convolution": (lambda: nn.Sequential(nn.Conv2d(4, 4, 3, groups=4, padding=1)), (4, 5, 5)),
    "grouped convolution": (lambda: nn.Sequential(nn.Conv2d(4, 6, 3, groups=2, bias=False), nn.SiLU()), (4, 5, 5)),
    "layer used twice": (Twice, (5,)),
}


def loop_reference(model: nn.Module, inputs: Tensor) -> list[dict[str, Tensor]]:
    """Plain autograd, one example at a time."""
    task, reference = SquaredOutputs(), []
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    for example in inputs:
        batch = {"x": example[None]}
        loss = task.loss(task.outputs(model, batch), batch).sum()
        gradients = torch.autograd.grad(loss, [model.get_parameter(name) for name in names])
        reference.append(dict(zip(names, gradients, strict=True)))
    return reference


def assert_gradients_match(model: nn.Module, inputs: Tensor) -> None:
    model.eval()
    tracked, task = track(model), SquaredOutputs()
    with tracing(model, task, tracked.layers, {"x": inputs}) as trace:
        gradients = trace.layer_gradients(task.loss(trace.outputs, trace.batch))
    for number, expected in enumerate(loop_reference(model, inputs)):
        for layer in tracked.layers:
            wanted = layer.matrix(expected)
            assert tuple(wanted.shape) == layer.shape
            torch.testing.assert_close(gradients[layer.name].dense()[number], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("batch_size", [1, 4])
def test_gradients_equal_a_loop_of_autograd(kind: str, batch_size: int) -> None:
    make, shape = MODELS[kind]
    assert_gradients_match(make(), torch.randn(batch_size, *shape))


@pytest.mark.parametrize("kind", [*MODELS, "table"])
def test_parameters_laid_out_as_matrices_come_back_as_they_were(kind: str) -> None:
    model = Positions() if kind == "table" else MODELS[kind][0]()
    tracked = track(model)
    own = {
        name: torch.randn_like(parameter) for layer in tracked.layers for name, parameter in layer.parameters().items()
    }

    back = tracked.parameters_of(tracked.matrices(own))

    assert back.keys() == own.keys()
    assert all(torch.equal(back[name], own[name]) for name in own)


@pytest.mark.parametrize("frozen", ["0.weight", "0.bias"])
def test_a_frozen_weight_or_bias_is_left_out_of_the_layer(frozen: str) -> None:
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    model.get_parameter(frozen).requires_grad_(False)
    assert_gradients_match(model, torch.randn(3, 5))


@pytest.mark.parametrize("batch_size", [1, 3])
def test_tables_looked_up_once_for_the_batch_keep_examples_apart(batch_size: int) -> None:
    assert_gradients_match(Positions(), torch.randint(0, 11, (batch_size, 7)))


def test_layers_below_the_first_trained_one_are_not_differentiated() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
    model[0].requires_grad_(False)
    seen: list[bool] = []
    model[1].register_forward_hook(lambda module, args, output: seen.append(output.requires_grad))
    assert_gradients_match(model, torch.randn(2, 4))
    assert seen[0] is False


def test_the_model_is_left_as_it_was() -> None:
    model = MODELS["layer norm"][0]().train()
    with tracing(model, SquaredOutputs(), track(model).layers, {"x": torch.randn(2, 4, 5)}):
        pass
    assert model.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())


def test_an_unsupported_layer_is_named_with_its_share() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.GRU(4, 4, batch_first=True))
    with pytest.raises(ModelError, match=r"1 \(GRU, 85\.7%\)"):
        track(model)
    tracked = track(model, allow_left_out=True)
    assert [layer.name for layer in tracked.layers] == ["0"]
    assert tracked.share_left_out == pytest.approx(120 / 140)


def test_a_class_that_computes_otherwise_than_the_one_it_derives_from_is_refused() -> None:
    class Scaled(nn.Embedding):
        def forward(self, ids: Tensor) -> Tensor:
            return super().forward(ids) * 4.0

    class Standardised(nn.Conv2d):
        def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            return super()._conv_forward(x, weight - weight.mean(), bias)

    class Named(nn.Linear):
        pass

    model = nn.ModuleList([Scaled(5, 4), Standardised(2, 2, 1), Named(3, 3)])
    with pytest.raises(ModelError, match=r"0 \(Scaled, .*1 \(Standardised, "):
        track(model)
    assert [layer.name for layer in track(model, allow_left_out=True).layers] == ["2"]


class ScaledEmbedding(nn.Embedding):
    """As Gemma's: its forward is another than its parent's."""

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids) * 3


def attention_with_a_trained_projection() -> nn.Module:
    attention = nn.MultiheadAttention(4, 2).requires_grad_(False)
    attention.out_proj.requires_grad_(True)  # whose weights the attention takes without calling it
    return attention


@pytest.mark.parametrize(
    ("module", "named"),
    [(ScaledEmbedding(5, 4), "ScaledEmbedding"), (attention_with_a_trained_projection(), "out_proj")],
)
def test_a_module_that_computes_something_else_than_its_kind_is_refused(module: nn.Module, named: str) -> None:
    with pytest.raises(ModelError, match=named):
        track(module)


def test_tied_parameters_are_refused_by_name() -> None:
    model = nn.ModuleDict({"table": nn.Embedding(5, 4), "head": nn.Linear(4, 5, bias=False)})
    model["head"].weight = model["table"].weight
    with pytest.raises(ModelError, match=r"'table\.weight' and 'head\.weight' are one tensor"):
        track(model)


def test_a_model_with_nothing_trainable_is_refused() -> None:
    with pytest.raises(ModelError, match="no parameter of the model is trainable"):
        track(nn.Linear(2, 2).requires_grad_(False))


def test_an_input_overwritten_in_place_is_refused_not_silently_wrong() -> None:
    class Overwrites(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(3, 3)
            self.second = nn.Linear(3, 3)
            self.second.weight.requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.first(x) * 1.0
            out = self.second(hidden)
            hidden.add_(1.0)
            return out

    model = Overwrites()
    task = SquaredOutputs()
    with (
        tracing(model, task, track(model).layers, {"x": torch.randn(2, 3)}) as trace,
        pytest.raises(ModelError, match="overwritten in place"),
    ):
        trace.layer_gradients(task.loss(trace.outputs, trace.batch))
