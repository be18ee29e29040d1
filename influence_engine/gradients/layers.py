"""The layers with per-example gradients, and how each kind gives them from its input and output gradient."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from influence_engine.errors import ModelError
from influence_engine.gradients.factors import DenseGradient, FactoredGradient, IndexedGradient, LayerGradient

_FORMATS = ("channels_first", "channels_last")
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class Layer(Protocol):
    """A module whose trainable parameters are one matrix ``[d0, d1]``."""

    @property
    def name(self) -> str:
        """Name of the module in the model."""

    @property
    def module(self) -> nn.Module:
        """The module itself."""

    @property
    def shape(self) -> tuple[int, int]:
        """``(d0, d1)``."""

    def parameters(self) -> dict[str, nn.Parameter]:
        """Trainable parameters by their names in the model."""

    def gradient(self, inputs: Tensor, output_gradient: Tensor, batch_size: int) -> LayerGradient:
        """Per-example gradients from the layer's input and the gradient of a scalar at its output."""

    def matrix(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """Lays tensors of the parameters' shapes (weights, moments, displacements) out as ``[d0, d1]``."""


@dataclass(frozen=True)
class _Base:
    """A module, its name in the model, and the names of its own trained parameters (``weight``, ``bias``)."""

    name: str
    module: nn.Module
    trained: frozenset[str]

    def parameters(self) -> dict[str, nn.Parameter]:
        prefix = f"{self.name}." if self.name else ""
        own = self.module.named_parameters(recurse=False)
        return {prefix + name: parameter for name, parameter in own if name in self.trained}

    def _has(self, name: str) -> bool:
        return name in self.trained

    def _part(self, parameters: Mapping[str, Tensor], name: str) -> Tensor:
        return parameters[f"{self.name}.{name}" if self.name else name]

    def _columns(self, parameters: Mapping[str, Tensor], weight: Tensor | None) -> Tensor:
        """The weight's columns, and the bias as a last one."""
        parts = [] if weight is None else [weight]
        if self._has("bias"):
            parts.append(self._part(parameters, "bias").unsqueeze(-1))
        return torch.cat(parts, -1)

    def _inputs(self, inputs: Tensor) -> Tensor:
        """Inputs ``[..., d]`` where the weight is trained, and a last column of ones where the bias is."""
        parts = [inputs] if self._has("weight") else []
        if self._has("bias"):
            parts.append(inputs.new_ones(*inputs.shape[:-1], 1))
        return torch.cat(parts, -1) if len(parts) > 1 else parts[0]


@dataclass(frozen=True)
class LinearLayer(_Base):
    """``nn.Linear`` (weight ``[out, in]``) and the ``Conv1D`` of GPT-2 (weight ``[in, out]``)."""

    transposed: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        weight = self.module.get_parameter("weight")
        out_features, in_features = reversed(weight.shape) if self.transposed else weight.shape
        return int(out_features), int(in_features) * self._has("weight") + self._has("bias")

    def gradient(self, inputs: Tensor, output_gradient: Tensor, batch_size: int) -> LayerGradient:
        left = _positions(output_gradient, batch_size, self.name)
        return FactoredGradient(left, self._inputs(_positions(inputs, batch_size, self.name)))

    def matrix(self, parameters: Mapping[str, Tensor]) -> Tensor:
        weight = self._part(parameters, "weight") if self._has("weight") else None
        if weight is not None and self.transposed:
            weight = weight.T
        return self._columns(parameters, weight)


@dataclass(frozen=True)
class EmbeddingLayer(_Base):
    """``nn.Embedding``, weight ``[rows, width]``."""

    @property
    def shape(self) -> tuple[int, int]:
        rows, width = self.module.get_parameter("weight").shape
        return int(rows), int(width)

    def gradient(self, inputs: Tensor, output_gradient: Tensor, batch_size: int) -> LayerGradient:
        right = _positions(output_gradient, batch_size, self.name)
        rows = inputs.reshape(batch_size, -1)
        padding = getattr(self.module, "padding_idx", None)
        if padding is not None:
            # Autograd never trains the padding row.
            right = right * (rows != padding).unsqueeze(-1)
        return IndexedGradient(rows, right, self.shape[0])

    def matrix(self, parameters: Mapping[str, Tensor]) -> Tensor:
        return self._part(parameters, "weight")


@dataclass(frozen=True)
class ConvolutionLayer(_Base):
    """``nn.Conv2d`` with zero padding; weight ``[out, in / groups, kh, kw]`` seen as ``[out, in / groups kh kw]``."""

    @property
    def shape(self) -> tuple[int, int]:
        weight = self.module.get_parameter("weight")
        return int(weight.shape[0]), int(weight[0].numel()) * self._has("weight") + self._has("bias")

    def gradient(self, inputs: Tensor, output_gradient: Tensor, batch_size: int) -> LayerGradient:
        module = self.module
        assert isinstance(module, nn.Conv2d)
        if inputs.shape[0] != batch_size:
            raise _batch_error(self.name, inputs, batch_size)
        patches = functional.unfold(
            _padded(inputs, module), module.kernel_size, module.dilation, padding=0, stride=module.stride
        ).transpose(1, 2)
        left = output_gradient.flatten(2).transpose(1, 2)
        if module.groups == 1:
            return FactoredGradient(left, self._inputs(patches))
        grouped_left = left.reshape(*left.shape[:2], module.groups, -1)
        grouped_right = patches.reshape(*patches.shape[:2], module.groups, -1)
        parts = []
        if self._has("weight"):
            parts.append(torch.einsum("btgo,btgi->bgoi", grouped_left, grouped_right).flatten(1, 2))
        if self._has("bias"):
            parts.append(left.sum(1).unsqueeze(-1))
        return DenseGradient(torch.cat(parts, -1))

    def matrix(self, parameters: Mapping[str, Tensor]) -> Tensor:
        weight = self._part(parameters, "weight").flatten(1) if self._has("weight") else None
        return self._columns(parameters, weight)


@dataclass(frozen=True)
class NormalisationLayer(_Base):
    """Layer, RMS, group and, in evaluation mode, batch normalisation: weight and bias as columns, ``[width, 2]``."""

    @property
    def shape(self) -> tuple[int, int]:
        some = next(iter(self.parameters().values()))
        return some.numel(), self._has("weight") + self._has("bias")

    def gradient(self, inputs: Tensor, output_gradient: Tensor, batch_size: int) -> LayerGradient:
        if inputs.shape[0] != batch_size:
            raise _batch_error(self.name, inputs, batch_size)
        if normalises_channels_first(self.module):
            inputs, output_gradient = inputs.movedim(1, -1), output_gradient.movedim(1, -1)
        columns = []
        if self._has("weight"):
            columns.append(self._summed(self._normalised(inputs) * output_gradient))
        if self._has("bias"):
            columns.append(self._summed(output_gradient))
        return DenseGradient(torch.stack(columns, -1))

    def matrix(self, parameters: Mapping[str, Tensor]) -> Tensor:
        parts = [self._part(parameters, name).flatten() for name in ("weight", "bias") if self._has(name)]
        return torch.stack(parts, -1)

    def _summed(self, gradient: Tensor) -> Tensor:
        """Sums over everything but the batch and the axes that the parameters run over."""
        if isinstance(self.module, (*_BATCH_NORMS, nn.GroupNorm)):
            return gradient.flatten(2).sum(-1) if gradient.dim() > 2 else gradient
        parameter = next(iter(self.parameters().values()))
        kept = gradient.shape[gradient.dim() - parameter.dim() :].numel()
        return gradient.reshape(gradient.shape[0], -1, kept).sum(1)

    def _normalised(self, inputs: Tensor) -> Tensor:
        module = self.module
        if isinstance(module, nn.LayerNorm):
            return functional.layer_norm(inputs, module.normalized_shape, eps=module.eps)
        if isinstance(module, nn.GroupNorm):
            return functional.group_norm(inputs, module.num_groups, eps=module.eps)
        if isinstance(module, _BATCH_NORMS):
            return functional.batch_norm(inputs, module.running_mean, module.running_var, eps=module.eps)
        if isinstance(module, nn.RMSNorm):
            return functional.rms_norm(inputs, tuple(module.normalized_shape), eps=module.eps)
        epsilon = _rms_epsilon(module)
        wide = inputs.float()
        return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)).to(inputs.dtype)


class _Make(Protocol):
    def __call__(self, name: str, module: nn.Module, trained: frozenset[str]) -> Layer: ...


@dataclass(frozen=True)
class Kind:
    """A supported kind of module.

    Attributes:
        fits: Whether a module is of this kind, that is, computes exactly what the layer's gradients assume.
        layer: Makes the layer from the module's name, the module, and the names of its trained parameters.
    """

    fits: Callable[[nn.Module], bool]
    layer: _Make


def _is(module: nn.Module, *classes: type[nn.Module]) -> bool:
    """Whether the module is of one of the classes, or of a subclass with the same ``forward`` (Gemma's embeddings scale
    their outputs, for instance, and are not)."""
    return any(isinstance(module, one) and type(module).forward is one.forward for one in classes)


def _is_linear(module: nn.Module) -> bool:
    # nn.MultiheadAttention's output projection has this class and is never called: the attention takes its weights.
    return _is(module, nn.Linear) and not isinstance(module, NonDynamicallyQuantizableLinear)


def _is_embedding(module: nn.Module) -> bool:
    return _is(module, nn.Embedding) and not module.scale_grad_by_freq and module.max_norm is None


def _is_convolution(module: nn.Module) -> bool:
    plain = getattr(type(module), "_conv_forward", None) is nn.Conv2d._conv_forward
    return plain and _is(module, nn.Conv2d) and module.padding_mode == "zeros"


def _is_batch_norm(module: nn.Module) -> bool:
    return _is(module, *_BATCH_NORMS) and module.running_mean is not None


def _is_channel_norm(module: nn.Module) -> bool:
    """Whether the module is layer normalisation that can also run over the channels of ``[B, C, H, W]`` (ConvNeXT)."""
    return isinstance(module, nn.LayerNorm) and getattr(module, "data_format", None) in _FORMATS


def normalises_channels_first(module: nn.Module) -> bool:
    """Whether the module is such a normalisation over the channels of ``[B, C, H, W]``."""
    return getattr(module, "data_format", None) == "channels_first"


def _is_other_rms_norm(module: nn.Module) -> bool:
    """Whether the module is the RMS normalisation of a ``transformers`` model, each of which has a class of its own."""
    named = type(module).__name__.endswith("RMSNorm") and not isinstance(module, nn.RMSNorm)
    return named and [name for name, _ in module.named_parameters(recurse=False)] == ["weight"]


KINDS: Mapping[str, Kind] = {
    "linear": Kind(_is_linear, LinearLayer),
    "Conv1D of GPT-2": Kind(
        lambda module: type(module).__name__ == "Conv1D", functools.partial(LinearLayer, transposed=True)
    ),
    "embedding": Kind(_is_embedding, EmbeddingLayer),
    "convolution": Kind(_is_convolution, ConvolutionLayer),
    "layer normalisation": Kind(lambda module: _is(module, nn.LayerNorm), NormalisationLayer),
    "layer normalisation of channels": Kind(_is_channel_norm, NormalisationLayer),
    "group normalisation": Kind(lambda module: _is(module, nn.GroupNorm), NormalisationLayer),
    "batch normalisation": Kind(_is_batch_norm, NormalisationLayer),
    "RMS normalisation": Kind(lambda module: _is(module, nn.RMSNorm), NormalisationLayer),
    "RMS normalisation of transformers": Kind(_is_other_rms_norm, NormalisationLayer),
}
"""The supported kinds, by name; a module is of one kind at most."""


def layer_for(name: str, module: nn.Module) -> Layer | None:
    """The layer for a module with trainable parameters of its own, or ``None`` if its kind is not supported."""
    trained = frozenset(key for key, value in module.named_parameters(recurse=False) if value.requires_grad)
    if not trained <= {"weight", "bias"}:
        return None
    return next((kind.layer(name, module, trained) for kind in KINDS.values() if kind.fits(module)), None)


def _rms_epsilon(module: nn.Module) -> float:
    for attribute in ("variance_epsilon", "eps"):
        value = getattr(module, attribute, None)
        if value is not None:
            return float(value)
    return torch.finfo(torch.float32).eps


def _padded(inputs: Tensor, module: nn.Conv2d) -> Tensor:
    if module.padding == "valid":
        return inputs
    if isinstance(module.padding, str):  # "same"
        sides: list[int] = []
        for size, dilation in zip(reversed(module.kernel_size), reversed(module.dilation), strict=True):
            total = dilation * (size - 1)
            sides += [total // 2, total - total // 2]
        return functional.pad(inputs, sides)
    height, width = (int(side) for side in module.padding)
    return functional.pad(inputs, [width, width, height, height])


def _positions(tensor: Tensor, batch_size: int, name: str) -> Tensor:
    """``[B, ..., d]`` as ``[B, T, d]``; a batch flattened into the first axis (``[B T, d]``) is folded out again."""
    if tensor.shape[0] % batch_size:
        raise _batch_error(name, tensor, batch_size)
    return tensor.reshape(batch_size, -1, tensor.shape[-1])


def _batch_error(name: str, tensor: Tensor, batch_size: int) -> ModelError:
    return ModelError(
        f"layer {name!r} was called with a tensor of shape {list(tensor.shape)}, whose first dimension does not hold "
        f"the {batch_size} examples of the batch; per-example gradients need the batch first",
        field=name,
    )
