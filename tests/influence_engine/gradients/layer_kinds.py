"""Draws supported layers of every kind with shapes that fit them, batches of examples, and what autograd says of each.

``MODULES`` has a strategy for every kind of ``influence_engine.gradients.layers.KINDS``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from transformers.models.convnext.modeling_convnext import ConvNextLayerNorm
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.pytorch_utils import Conv1D

from influence_engine.tasks import Batch, Example

WIDTHS = st.integers(1, 5)
SEEDS = st.integers(0, 9999)


@dataclass(frozen=True)
class Drawn:
    """A module and the inputs that it takes.

    Attributes:
        module: With random weights; some of its parameters may be frozen.
        shape: Of one example's input.
        axes: Those of ``shape`` along which examples may be padded, with the smallest size that the module takes.
        rows: Inputs are numbers below it; 0 where they are random numbers.
        zeros: Whether padding must be zeros, as it is for a convolution, which sees it from inside.
        single: Whether the module computes in single precision whatever it is given.
        centred: The axis of a batch along which the module subtracts means. In half precision inputs alternate in sign
            along it: means of numbers that lie close together would amplify the rounding of autograd itself.
    """

    module: nn.Module
    shape: tuple[int, ...]
    axes: Mapping[int, int]
    rows: int = 0
    zeros: bool = False
    single: bool = False
    centred: int | None = None

    def inputs(self, *shape: int, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
        """Random inputs of a shape."""
        if self.rows:
            return torch.randint(self.rows, shape, generator=generator)
        values = torch.randn(shape, generator=generator)
        if self.centred is not None and dtype.itemsize == 2:
            values.transpose(self.centred, -1).add_(3 - torch.arange(shape[self.centred]) % 2 * 6)
        return values.to(dtype)


class WeighedOutputs:
    """The loss is a sum of outputs times weights; an output that an example does not have is one of weight zero.

    In half precision nothing else is rounded then than what the layer itself computes; with more digits the loss is
    curved as well.
    """

    def collate(self, examples: Sequence[Example]) -> Batch:
        return {name: torch.stack([example[name] for example in examples]) for name in examples[0]}

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        return model(batch["x"])

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        half = outputs.dtype.itemsize == 2
        return ((outputs if half else outputs.sin()) * batch["weights"]).flatten(1).sum(1)

    def measurement(self, outputs: Tensor, batch: Batch) -> Tensor:
        return outputs.flatten(1).sum(1)


def autograd_of_one(model: nn.Module, example: Batch) -> dict[str, Tensor]:
    """Plain autograd for a batch of one, by parameter name."""
    task = WeighedOutputs()
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    loss = task.loss(task.outputs(model, example), example).sum()
    gradients = torch.autograd.grad(loss, list(trained.values()))
    return dict(zip(trained, gradients, strict=True))


def padded(tensors: Sequence[Tensor], fill: Any) -> Tensor:
    """Tensors of different sizes as one ``[B, ...]``; ``fill(*shape)`` makes what they are laid into."""
    sizes = [max(sizes) for sizes in zip(*(tensor.shape for tensor in tensors), strict=True)]
    whole = fill(len(tensors), *sizes).to(tensors[0].dtype)
    for number, tensor in enumerate(tensors):
        whole[(number, *(slice(size) for size in tensor.shape))] = tensor
    return whole


@st.composite
def drawn_inputs(draw: st.DrawFn, one: Drawn, dtype: torch.dtype, *, sizes_differ: bool) -> tuple[Batch, list[Batch]]:
    """A batch of examples, and each of them alone; where sizes differ, all of the batch but the largest is padded."""
    generator = torch.Generator().manual_seed(draw(SEEDS))

    def drawn(*shape: int) -> Tensor:
        return one.inputs(*shape, generator=generator, dtype=dtype)

    alone = []
    for _ in range(draw(st.integers(1, 4))):
        shape = list(one.shape)
        for axis, least in one.axes.items() if sizes_differ else ():
            shape[axis] = draw(st.integers(least, shape[axis]))
        x = drawn(1, *shape)
        with torch.no_grad():
            weights = torch.rand(one.module(x).shape, generator=generator).to(dtype)
        alone.append({"x": x, "weights": weights})
    x = padded([example["x"][0] for example in alone], torch.zeros if one.zeros else drawn)
    weights = padded([example["weights"][0] for example in alone], torch.zeros)
    with torch.no_grad():  # the last rows of a strided convolution may be more than any example has
        missing = [whole - own for whole, own in zip(one.module(x).shape, weights.shape, strict=True)]
    sides = [side for size in reversed(missing) for side in (0, size)]
    return {"x": x, "weights": functional.pad(weights, sides)}, alone


def randomised(module: nn.Module, seed: int) -> nn.Module:
    """The module in evaluation mode, every weight and running mean random, running variances and scales positive."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if tensor.is_floating_point():
                tensor.normal_(generator=generator)
                if name.endswith("running_var"):
                    tensor.abs_().add_(0.5)
    return module.eval()


@st.composite
def _with_random_weights(draw: st.DrawFn, modules: st.SearchStrategy[Drawn]) -> Drawn:
    one = draw(modules)
    randomised(one.module, draw(SEEDS))
    own = dict(one.module.named_parameters())
    if len(own) > 1:
        frozen = draw(st.sampled_from(["nothing", *own]))
        if frozen in own:
            own[frozen].requires_grad_(False)
    return one


@st.composite
def _positions(draw: st.DrawFn, least: int = 0) -> tuple[int, ...]:
    """Sizes of none, one or two axes before the width."""
    return tuple(draw(st.lists(st.integers(1, 4), min_size=least, max_size=2)))


def _along(positions: tuple[int, ...], first: int = 0) -> dict[int, int]:
    return dict.fromkeys(range(first, first + len(positions)), 1)


@st.composite
def _linear(draw: st.DrawFn) -> Drawn:
    positions, width = draw(_positions()), draw(WIDTHS)
    module = nn.Linear(width, draw(WIDTHS), bias=draw(st.booleans()))
    return Drawn(module, (*positions, width), _along(positions))


@st.composite
def _conv1d(draw: st.DrawFn) -> Drawn:
    positions, width = draw(_positions()), draw(WIDTHS)
    return Drawn(Conv1D(draw(WIDTHS), width), (*positions, width), _along(positions))


@st.composite
def _embedding(draw: st.DrawFn) -> Drawn:
    positions, rows = draw(_positions()), draw(st.integers(1, 6))
    padding = draw(st.none() | st.integers(-rows, rows - 1))
    module = nn.Embedding(rows, draw(WIDTHS), padding_idx=padding)
    return Drawn(module, positions, _along(positions), rows=rows)


@st.composite
def _convolution(draw: st.DrawFn) -> Drawn:
    pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))
    kernel, dilation, stride = draw(pairs), draw(pairs), draw(pairs)
    padding: Any = draw(st.sampled_from(["valid", "same"]) | st.tuples(st.integers(0, 2), st.integers(0, 2)))
    if padding == "same":
        stride = (1, 1)
    groups = draw(st.integers(1, 3))
    module = nn.Conv2d(
        groups * draw(st.integers(1, 2)),
        groups * draw(st.integers(1, 2)),
        kernel,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        bias=draw(st.booleans()),
    )
    around = (0, 0) if isinstance(padding, str) else padding
    least = [
        1 if padding == "same" else max(1, step * (size - 1) + 1 - 2 * side)
        for size, step, side in zip(kernel, dilation, around, strict=True)
    ]
    sizes = [size + draw(st.integers(0, 3)) for size in least]
    return Drawn(module, (module.in_channels, *sizes), dict(enumerate(least, start=1)), zeros=True)


@st.composite
def _layer_norm(draw: st.DrawFn) -> Drawn:
    positions, widths = draw(_positions()), draw(st.sampled_from([(2,), (5,), (1, 3), (3, 2)]))
    affine = draw(st.booleans())
    module = nn.LayerNorm(widths, eps=draw(st.sampled_from([1e-5, 1e-2])), bias=affine)
    return Drawn(module, (*positions, *widths), _along(positions), centred=-1)


@st.composite
def _channel_norm(draw: st.DrawFn) -> Drawn:
    width, positions = draw(st.integers(2, 5)), (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    options = {"eps": draw(st.sampled_from([1e-5, 1e-2]))}
    if draw(st.booleans()):
        module = ConvNextLayerNorm(width, data_format="channels_first", **options)
        return Drawn(module, (width, *positions), _along(positions, first=1), centred=1)
    return Drawn(ConvNextLayerNorm(width, **options), (*positions, width), _along(positions), centred=-1)


@st.composite
def _group_norm(draw: st.DrawFn) -> Drawn:
    # Its statistics run over all positions, so a padded example is another one: no axis can be padded.
    groups, each = draw(st.integers(1, 3)), draw(st.integers(2, 3))
    module = nn.GroupNorm(groups, groups * each, eps=draw(st.sampled_from([1e-5, 1e-2])))
    return Drawn(module, (groups * each, *draw(_positions())), {}, centred=1)


@st.composite
def _batch_norm(draw: st.DrawFn) -> Drawn:
    width = draw(WIDTHS)
    kind, axes = draw(
        st.sampled_from([(nn.BatchNorm1d, 0), (nn.BatchNorm1d, 1), (nn.BatchNorm2d, 2), (nn.BatchNorm3d, 3)])
    )
    positions = tuple(draw(st.integers(1, 3)) for _ in range(axes))
    return Drawn(kind(width, eps=draw(st.sampled_from([1e-5, 1e-2]))), (width, *positions), _along(positions, first=1))


@st.composite
def _rms_norm(draw: st.DrawFn) -> Drawn:
    positions, widths = draw(_positions()), draw(st.sampled_from([(1,), (5,), (3, 2)]))
    return Drawn(nn.RMSNorm(widths, eps=draw(st.sampled_from([None, 1e-2]))), (*positions, *widths), _along(positions))


@st.composite
def _rms_norm_of_transformers(draw: st.DrawFn) -> Drawn:
    positions, width = draw(_positions()), draw(WIDTHS)
    kind = draw(st.sampled_from([LlamaRMSNorm, GemmaRMSNorm]))
    module = kind(width, eps=draw(st.sampled_from([1e-6, 1e-2])))
    return Drawn(module, (*positions, width), _along(positions), single=True)


MODULES: dict[str, st.SearchStrategy[Drawn]] = {
    kind: _with_random_weights(strategy)
    for kind, strategy in {
        "linear": _linear(),
        "Conv1D of GPT-2": _conv1d(),
        "embedding": _embedding(),
        "convolution": _convolution(),
        "layer normalisation": _layer_norm(),
        "layer normalisation of channels": _channel_norm(),
        "group normalisation": _group_norm(),
        "batch normalisation": _batch_norm(),
        "RMS normalisation": _rms_norm(),
        "RMS normalisation of transformers": _rms_norm_of_transformers(),
    }.items()
}
