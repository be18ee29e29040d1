"""Promise: what the positions of a picture add to an inner product of gradients sums to that inner product, and a
position's part is what the layers read there.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from influence_engine.gradients import tracing, track
from influence_engine.gradients.pooled_positions import pooled_maps
from influence_engine.gradients.position_products import products_by_position
from influence_engine.models.trainable import choose_trainable
from influence_engine.tasks import ImageClassification, PictureProcessor
from tests.tasks.toys.pictures import convnext, efficientnet_lite, pictures, resnet, vit

MODELS: dict[str, tuple[Callable[[], nn.Module], str | int]] = {
    "efficientnet-lite": (efficientnet_lite, "all"),
    "resnet": (resnet, "all"),
    "convnext": (convnext, "all"),
    "vit": (vit, 1),
}


def parts_of(name: str, folder: Path) -> tuple[Tensor, Tensor, dict[str, list[tuple[int, ...]]]]:
    """Parts ``[B, P]`` along a random direction, the same inner products by autograd, and shapes by layer."""
    make, trainable = MODELS[name]
    toy = pictures(make, name)(folder)
    model, examples = toy.model(0), toy.train[:3]
    choose_trainable(model, trainable)
    tracked = track(model)
    draw = torch.Generator().manual_seed(1)
    along = {layer.name: torch.randn(layer.shape, generator=draw) for layer in tracked.layers}
    batch = toy.task.collate(examples)
    with pooled_maps(model) as maps, tracing(model, toy.task, tracked.layers, batch) as trace:
        losses = toy.task.loss(trace.outputs, batch)
        (direction,) = torch.autograd.grad(losses.sum(), trace.outputs, retain_graph=True)
        calls = products_by_position(trace, trace.outputs, direction, tracked, along, maps)
    count = len(toy.task.parts(examples[0]))  # type: ignore[attr-defined]
    total, shapes = torch.zeros(len(examples), count), {}
    for layer, products in calls:
        shape = tuple(products.shape[1:])
        shapes.setdefault(layer, []).append(shape)
        numbers = toy.task.parts_of_positions(examples[0], shape)  # type: ignore[attr-defined]
        total.scatter_add_(1, numbers.flatten().expand(len(examples), -1), products.reshape(len(examples), -1).float())
    moved = tracked.parameters_of(along)
    expected = []
    for example in examples:
        one = toy.task.collate([example])
        names = {key: value for key, value in model.named_parameters() if value.requires_grad}
        grads = torch.autograd.grad(toy.task.loss(toy.task.outputs(model, one), one).sum(), list(names.values()))
        expected.append(sum((g * moved[key]).sum() for key, g in zip(names, grads, strict=True)))
    return total, torch.stack([torch.as_tensor(one) for one in expected]), shapes


@pytest.mark.parametrize("name", MODELS)
def test_parts_of_all_positions_sum_to_autograd_s_inner_product(name: str, tmp_path: Path) -> None:
    total, expected, _ = parts_of(name, tmp_path)
    torch.testing.assert_close(total.sum(1), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("name", ["efficientnet-lite", "resnet"])
def test_a_head_on_pooled_features_is_split_over_the_map_that_it_pools(name: str, tmp_path: Path) -> None:
    _, _, shapes = parts_of(name, tmp_path)
    (head,) = [found for layer, found in shapes.items() if layer.startswith("classifier")]
    assert [len(shape) for shape in head] == [2, 0]  # what it reads, and its bias


def test_a_region_that_a_layer_sees_as_zero_adds_nothing(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Conv2d(3, 2, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2))
    toy = pictures(lambda: module, "one")(tmp_path)

    class Plain(type(toy.task)):  # type: ignore[misc]
        """Of a module that takes pixels and gives logits."""

        def outputs(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
            found: Tensor = model(batch["pixel_values"])
            return found

    toy.task.__class__ = Plain
    batch = dict(toy.task.collate(toy.train[:2]))
    batch["pixel_values"][:, :, :8] = 0.0
    tracked = track(module)
    along = {layer.name: torch.ones(layer.shape) for layer in tracked.layers}
    with pooled_maps(module) as maps, tracing(module, toy.task, tracked.layers, batch) as trace:
        calls = products_by_position(trace, trace.outputs, torch.ones_like(trace.outputs), tracked, along, maps)
    for _, products in calls:
        if products.dim() == 3:
            assert not products[:, :8].any()
            assert products[:, 8:].any()


@pytest.mark.parametrize("shape", [(5, 5), (10, 10), (3, 3), (8, 7)])
def test_positions_lie_in_the_regions_of_their_middles(shape: tuple[int, int]) -> None:
    task = ImageClassification(PictureProcessor(size=(160, 160)), ["a", "b"])
    assert len(task.parts({})) == 26
    found = task.parts_of_positions({}, shape)
    assert found.shape == shape
    assert [int(found[row, column]) for row in (0, -1) for column in (0, -1)] == [0, 4, 20, 24]
    assert bool((found[1:] >= found[:-1]).all())


def test_what_has_no_place_is_in_the_last_part() -> None:
    task = ImageClassification(PictureProcessor(size=(160, 160)), ["a", "b"])
    patches = task.parts_of_positions({}, (17,))  # [CLS], then four by four
    assert [int(patches[0]), int(patches[1]), int(patches[-1])] == [25, 0, 24]
    assert task.parts_of_positions({}, (16,)).tolist() == patches[1:].tolist()
    for shape in ((), (1, 1), (7,)):
        assert bool((task.parts_of_positions({}, shape) == 25).all())
