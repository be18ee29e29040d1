"""An influence, split over parts of the training example: by the terms of its loss, and by positions in the layers."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from influence_engine import Attributor, IndexSettings, InfluenceIndex
from influence_engine.attribution.direction import QueryDirections
from influence_engine.attribution.parts import PartSplitter
from influence_engine.errors import InputError
from influence_engine.gradients import track, tracing
from influence_engine.gradients.position_products import products_by_position
from influence_engine.tasks import Batch, Example, Part
from tests.small_models import LABELS, seeded, sentence, small_bert
from tests.tasks.toys import TOYS, Toy
from tests.tasks.toys.base import with_ids
from tests.tasks.toys.text import text as text_toy


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return TOYS["entities"](tmp_path_factory.mktemp("toy"))


def built(toy: Toy, folder: Path, **settings: Any) -> Attributor:
    """The toy's model, untrained, with an index of one step at these weights."""
    chosen = IndexSettings.model_validate(
        {"approximation": "final", "damping": 0.5, "dtype": "float32", "metric": "identity", **settings}
    )
    model = toy.model(3)
    index = InfluenceIndex.build(model, toy.task, toy.train, folder, chosen)
    return Attributor(model, toy.task, index)


def directions_of(attributor: Attributor, query: Example) -> tuple[Tensor, Mapping[str, Tensor]]:
    """A query's vector, and its direction in the weights by the parameters' names."""
    ((_, encoded),) = attributor._encoded([query], 1)
    (point,) = QueryDirections(attributor.index, attributor.model, None).of(encoded[0])
    return encoded[0], attributor.tracked.parameters_of(point.along)


def test_parts_are_the_derivatives_of_the_loss_s_terms_along_the_query_s_direction(toy: Toy, tmp_path: Path) -> None:
    attributor, task = built(toy, tmp_path), toy.task
    encoded, along = directions_of(attributor, toy.queries[0])
    splitter = PartSplitter(attributor.model, task, attributor.index, attributor.tracked, None)
    found = splitter.products(encoded, toy.train[:6])
    names = [name for name, one in attributor.model.named_parameters() if one.requires_grad]
    parameters = [attributor.model.get_parameter(name) for name in names]
    for row, example in enumerate(toy.train[:6]):
        batch = task.collate([example])
        losses = task.loss_parts(task.outputs(attributor.model, batch), batch)[0]
        for number, loss in enumerate(losses):
            gradients = torch.autograd.grad(loss, parameters, retain_graph=True, materialize_grads=True, allow_unused=True)
            expected = sum(float((g * along[n]).sum()) for n, g in zip(names, gradients, strict=True))
            assert float(found[row, number]) == pytest.approx(expected, rel=1e-3, abs=1e-7)
        assert found[row, len(losses) :].abs().max() == 0 if len(losses) < found.shape[1] else True


def test_parts_sum_to_the_influence_that_the_index_holds(toy: Toy, tmp_path: Path) -> None:
    attributor = built(toy, tmp_path)
    for result in attributor.attribute(toy.queries, top_k=len(toy.train), parts=True):
        whole = max(abs(one.influence) for one in result.examples)
        for one in result.examples:
            assert one.parts is not None and one.parts_residual is not None
            assert sum(part["influence"] for part in one.parts) + one.parts_residual == pytest.approx(one.influence)
            assert abs(one.parts_residual) < 0.01 * whole
            taught = [(part["start"], part["end"], part["label"]) for part in one.parts[1:]]
            assert taught == [(e["start"], e["end"], e["label"]) for e in one.fields["entities"]]


def test_a_mention_whose_type_is_changed_carries_the_change(toy: Toy, tmp_path: Path) -> None:
    changed = [
        {**one, "entities": [{**e, "label": "place"} if e["label"] == "praise" else e for e in one["entities"]]}
        for one in toy.train
    ]
    attributor = built(toy, tmp_path)
    encoded, _ = directions_of(attributor, {"text": "a good story", "target": {"span": [2, 6], "label": "praise"}})
    splitter = PartSplitter(attributor.model, toy.task, attributor.index, attributor.tracked, None)
    before, after = splitter.products(encoded, toy.train), splitter.products(encoded, changed)
    praised: list[tuple[int, int]] = []
    for row, example in enumerate(toy.train):
        for number, entity in enumerate(example["entities"], start=1):
            if entity["label"] == "praise":
                praised.append((row, number))
            else:
                assert float(after[row, number]) == pytest.approx(float(before[row, number]), rel=1e-4, abs=1e-8)
    assert sum(float(after[place] - before[place]) for place in praised) < 0


def test_what_lies_behind_the_tokens_that_are_read_has_no_part_in_an_influence(toy: Toy, tmp_path: Path) -> None:
    attributor, long = built(toy, tmp_path), "the film " * 10 + "good"
    encoded, _ = directions_of(attributor, toy.queries[0])
    splitter = PartSplitter(attributor.model, toy.task, attributor.index, attributor.tracked, None)
    (known,) = attributor.attribute(toy.queries[:1], top_k=1)
    (one,) = known.examples
    fields = {"text": long, "entities": [{"start": 90, "end": 94, "label": "praise"}]}
    (split,) = splitter.split_all(encoded, [type(one)(**{**vars(one), "fields": fields})])
    assert [part["influence"] for part in split.parts or []][1] == 0


def test_a_task_without_parts_and_an_index_without_examples_say_so(tmp_path: Path) -> None:
    words = text_toy(tmp_path)
    with pytest.raises(InputError) as refused:
        built(words, tmp_path / "words").attribute(words.queries, parts=True)
    assert refused.value.field == "include"
    entities = TOYS["entities"](tmp_path)
    attributor = built(entities, tmp_path / "none", store_examples="none")
    (result, *_) = attributor.attribute(entities.queries, parts=True)
    assert all(one.parts is None and one.parts_residual is None for one in result.examples)


class Halves:
    """Pictures whose left and right halves are parts of them."""

    def collate(self, examples: Sequence[Example]) -> Batch:
        return {
            "input": torch.stack([torch.tensor(one["pixels"]) for one in examples]),
            "labels": torch.tensor([one.get("label", -1) for one in examples]),
        }

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        return model(batch["input"])

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        return functional.cross_entropy(outputs, batch["labels"], reduction="none")

    def measurement(self, outputs: Tensor, batch: Batch) -> Tensor:
        return outputs[:, 1] - outputs[:, 0]

    def parts(self, example: Example) -> list[Part]:
        return [Part("pixels"), Part("pixels", 0, 1), Part("pixels", 1, 2)]

    def parts_of_positions(self, example: Example, shape: tuple[int, ...]) -> Tensor:
        if len(shape) < 2:
            return torch.zeros(shape, dtype=torch.long)
        halves = torch.arange(shape[1]) * 2 // shape[1] + 1
        return halves.expand(shape)

    def describe(self) -> dict[str, Any]:
        return {"type": "halves"}


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.Tanh(),
        nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False),
        nn.GroupNorm(2, 4),
        nn.Tanh(),
        nn.Conv2d(4, 2, 3, stride=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.LayerNorm(2),
        nn.Linear(2, 2),
    )


def pictures(count: int) -> list[dict[str, Any]]:
    draw = torch.Generator().manual_seed(1)
    return with_ids([{"pixels": torch.rand(1, 8, 8, generator=draw).tolist(), "label": n % 2} for n in range(count)])


def test_products_by_position_sum_to_the_gradient_s_inner_product_in_every_kind_of_layer() -> None:
    batches: list[tuple[nn.Module, Any, Batch]] = []
    task, convolutional = Halves(), seeded(network, 0)
    batches.append((convolutional, task, task.collate(pictures(3))))
    words = text_toy(Path())
    draw = random.Random(1)
    examples = [{"text": sentence(draw, label), "label": label} for label in (*LABELS, *LABELS)]
    batches.append((small_bert(num_labels=2, seed=1), words.task, words.task.collate(examples)))
    for model, kind, batch in batches:
        tracked, draws = track(model), torch.Generator().manual_seed(2)
        along = {layer.name: torch.randn(layer.shape, generator=draws) for layer in tracked.layers}
        padding = [m for m in model.modules() if isinstance(m, nn.Embedding) and m.padding_idx is not None]
        assert not padding or kind is words.task  # whose row is never trained
        with tracing(model, kind, tracked.layers, batch) as trace:
            losses = kind.loss(trace.outputs, trace.batch)
            (direction,) = torch.autograd.grad(losses.sum(), trace.outputs, retain_graph=True)
            gradients = trace.gradients_along(trace.outputs, direction, keep_graph=True)
            calls = products_by_position(trace, trace.outputs, direction, tracked, along)
        for name, gradient in gradients.items():
            found = sum(products.reshape(len(products), -1).sum(1) for called, products in calls if called == name)
            torch.testing.assert_close(found, gradient.inner(along[name]), rtol=1e-4, atol=1e-5)


def test_parts_by_position_sum_to_the_influence_that_the_index_holds(tmp_path: Path) -> None:
    train = pictures(12)
    toy = Toy("halves", Halves(), lambda seed: seeded(network, seed), train, [{"pixels": train[0]["pixels"]}])
    attributor = built(toy, tmp_path)
    (result,) = attributor.attribute(toy.queries, top_k=12)
    encoded, _ = directions_of(attributor, toy.queries[0])
    splitter = PartSplitter(attributor.model, toy.task, attributor.index, attributor.tracked, None)
    before = {name: one.clone() for name, one in attributor.model.state_dict().items()}
    found = splitter.products(encoded, [train[one.row] for one in result.examples])
    assert found.shape == (12, 3)
    whole = torch.tensor([one.influence for one in result.examples])
    torch.testing.assert_close(found.sum(1), whole, rtol=1e-2, atol=1e-2 * float(whole.abs().max()))
    assert all(torch.equal(one, before[name]) for name, one in attributor.model.state_dict().items())
