"""EfficientNet-Lite: a small convolutional network without squeeze-and-excitation, of ordinary layers.

Tan and Le, EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks, ICML 2019, in the variant for
phones (no squeeze-and-excitation, ReLU6). TensorFlow pads a convolution of stride 2 by more on the right and below than
on the left and above, where a side is even; here a zero padding of its own does it, so that per-example gradients see a
plain convolution. For sides that are multiples of 32 the outputs are the original's.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling, ImageClassifierOutput

LITE0: tuple[tuple[int, int, int, int, int], ...] = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
"""Stages of Lite0: blocks, kernel, stride of the first block, expansion, channels."""


class EfficientNetLiteConfig(PreTrainedConfig):
    """Sizes of an EfficientNet-Lite.

    Args:
        stages: For each stage its blocks, kernel, stride of the first block, expansion, and channels.
        stem_channels: Channels of the first convolution.
        head_channels: Channels of the last one.
        batch_norm_eps: Added to variances.
        initializer_range: Standard deviation of a fresh head's weights.
    """

    model_type = "efficientnet_lite"

    def __init__(
        self,
        stages: Any = LITE0,
        stem_channels: int = 32,
        head_channels: int = 1280,
        batch_norm_eps: float = 1e-3,
        initializer_range: float = 0.02,
        **others: Any,
    ) -> None:
        self.stages = [list(stage) for stage in stages]
        self.stem_channels = stem_channels
        self.head_channels = head_channels
        self.batch_norm_eps = batch_norm_eps
        self.initializer_range = initializer_range
        super().__init__(**others)


class InvertedResidual(nn.Module):
    """Widen, convolve each channel by itself, narrow; added to the input where the shapes are equal."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int, expansion: int, eps: float) -> None:
        super().__init__()
        wide = channels * expansion
        self.expand = _convolution(channels, wide, 1, 1, 1, eps) if expansion > 1 else nn.Identity()
        self.depthwise = _convolution(wide, wide, kernel, stride, wide, eps)
        self.project = _convolution(wide, out, 1, 1, 1, eps, activation=False)
        self.adds = stride == 1 and channels == out

    def forward(self, inputs: Tensor) -> Tensor:
        """``[B, C, H, W]`` to ``[B, C', H / stride, W / stride]``."""
        found: Tensor = self.project(self.depthwise(self.expand(inputs)))
        return found + inputs if self.adds else found


class EfficientNetLitePreTrainedModel(PreTrainedModel):
    """What the two models share. Normalisation is frozen: its statistics are, and its weights go with them."""

    config_class = EfficientNetLiteConfig
    base_model_prefix = "efficientnet_lite"
    main_input_name = "pixel_values"
    _no_split_modules: ClassVar[list[str]] = ["InvertedResidual"]

    @classmethod
    def from_pretrained(cls, *args: Any, **settings: Any) -> Any:
        """As in ``transformers``, which makes every weight one to train; those of normalisation are frozen again."""
        found = super().from_pretrained(*args, **settings)
        (found[0] if isinstance(found, tuple) else found)._freeze_normalisation()
        return found

    def _freeze_normalisation(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.requires_grad_(False)


class EfficientNetLiteModel(EfficientNetLitePreTrainedModel):
    """The network without a classifier."""

    def __init__(self, config: EfficientNetLiteConfig) -> None:
        super().__init__(config)
        eps = config.batch_norm_eps
        self.stem = _convolution(3, config.stem_channels, 3, 2, 1, eps)
        blocks, channels = [], config.stem_channels
        for count, kernel, stride, expansion, out in config.stages:
            for number in range(count):
                blocks.append(InvertedResidual(channels, out, kernel, stride if number == 0 else 1, expansion, eps))
                channels = out
        self.blocks = nn.ModuleList(blocks)
        self.top = _convolution(channels, config.head_channels, 1, 1, 1, eps)
        self.pooler = nn.AdaptiveAvgPool2d(1)
        self._freeze_normalisation()
        self.post_init()

    def forward(self, pixel_values: Tensor, **_: Any) -> BaseModelOutputWithPooling:
        """Feature maps ``[B, head_channels, H / 32, W / 32]`` of ``[B, 3, H, W]``, and their means."""
        # Channels last, convolutions of one channel each take half the time on a processor.
        found = self.stem(pixel_values.contiguous(memory_format=torch.channels_last))
        for block in self.blocks:
            found = block(found)
        found = self.top(found)
        return BaseModelOutputWithPooling(last_hidden_state=found, pooler_output=torch.flatten(self.pooler(found), 1))


class EfficientNetLiteForImageClassification(EfficientNetLitePreTrainedModel):
    """The network with a linear classifier on the means of its feature maps."""

    def __init__(self, config: EfficientNetLiteConfig) -> None:
        super().__init__(config)
        self.efficientnet_lite = EfficientNetLiteModel(config)
        self.classifier = nn.Linear(config.head_channels, config.num_labels)
        self.post_init()

    def forward(self, pixel_values: Tensor, **_: Any) -> ImageClassifierOutput:
        """Logits ``[B, num_labels]`` of ``[B, 3, H, W]``."""
        found = self.efficientnet_lite(pixel_values)
        return ImageClassifierOutput(logits=self.classifier(found.pooler_output))


def _convolution(
    channels: int, out: int, kernel: int, stride: int, groups: int, eps: float, *, activation: bool = True
) -> nn.Sequential:
    """Padding where it is uneven, convolution, normalisation, ReLU6."""
    layers: list[nn.Module] = []
    if stride == 2:
        before = (kernel - 2) // 2
        after = kernel - 2 - before
        layers.append(nn.ZeroPad2d((before, after, before, after)))
    padding = kernel // 2 if stride == 1 else 0
    layers.append(nn.Conv2d(channels, out, kernel, stride, padding, groups=groups, bias=False))
    layers.append(nn.BatchNorm2d(out, eps=eps))
    if activation:
        layers.append(nn.ReLU6())
    return nn.Sequential(*layers)
