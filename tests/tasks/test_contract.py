"""What every task is promised by the engine, and what the engine is promised by every task.

The references are loops of autograd over single examples. A new task is done when it passes.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from influence_engine import Attributor
from influence_engine.curvature.gradient_passes import GradientPasses
from influence_engine.errors import DigestMismatchError, InputError
from influence_engine.gradients import tracing, track
from influence_engine.replay import replay
from influence_engine.resources import to_device
from influence_engine.tasks import (
    Batch,
    Example,
    ExportableTask,
    PredictingTask,
    Task,
    UnitsTask,
    aim,
    choose_targets,
    content_digest,
    example_sizes,
    fields_of,
    group_of,
    predictions_of,
    projection_of,
    show,
    targets_of,
    unread_part,
    with_targets,
    without_targets,
)
from influence_engine.training import reexecute
from influence_engine.training.step import put_parameters
from tests.tasks.conftest import Trained, build

DEVICE = torch.device("cpu")


def batch_of(task: Task, examples: Sequence[Example]) -> Batch:
    return to_device(task.collate(examples), DEVICE)


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: one for name, one in model.named_parameters() if one.requires_grad}


def flat_gradient(model: nn.Module, scalar: Tensor, *, graph: bool = False) -> Tensor:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    found = torch.autograd.grad(
        scalar, parameters, allow_unused=True, materialize_grads=True, create_graph=graph, retain_graph=graph
    )
    return torch.cat([one.flatten() for one in found])


def close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))


def test_examples_have_the_fields_that_the_task_names_and_can_be_shown(trained: Trained) -> None:
    fields = fields_of(trained.toy.task)
    for example in trained.toy.train:
        assert {field.name for field in fields} <= set(example)
        shown, group = show(trained.toy.task, example), group_of(trained.toy.task, example)
        assert isinstance(shown, str)
        assert group is None or isinstance(group, str)
        if any(field.role == "input" and field.kind != "numbers" for field in fields):
            assert shown
        assert unread_part(trained.toy.task, example) is None
    assert len({field.name for field in fields}) == len(fields)
    json.dumps([field.json_type() for field in fields])


def test_losses_and_measurements_are_an_example_s_own_whatever_batch_it_is_in(trained: Trained) -> None:
    task, model, train = trained.toy.task, trained.model(), trained.toy.train
    with torch.no_grad():
        together = batch_of(task, train)
        outputs = task.outputs(model, together)
        targets = choose_targets(task, outputs, together)
        found = task.loss(outputs, together), task.measurement(outputs, targets)
        for number, example in enumerate(train):
            batch = batch_of(task, [example])
            alone = task.outputs(model, batch)
            chosen = choose_targets(task, alone, batch)
            expected = task.loss(alone, batch), task.measurement(alone, chosen)
            for one, other in zip(found, expected, strict=True):
                assert one.shape == (len(train),)
                torch.testing.assert_close(one[number : number + 1], other, rtol=1e-4, atol=1e-5)


def test_gradients_are_those_of_autograd_one_example_at_a_time(trained: Trained) -> None:
    task, model, examples = trained.toy.task, trained.model(), trained.toy.train[:6]
    tracked = track(model)
    assert not tracked.left_out
    for scalar in (task.loss, task.measurement):
        with tracing(model, task, tracked.layers, batch_of(task, examples)) as trace:
            batch = choose_targets(task, trace.outputs, trace.batch)
            gradients = trace.layer_gradients(scalar(trace.outputs, batch))
        dense = {name: gradient.dense() for name, gradient in gradients.items()}
        for number, example in enumerate(examples):
            batch = batch_of(task, [example])
            outputs = task.outputs(model, batch)
            expected = flat_gradient(model, scalar(outputs, choose_targets(task, outputs, batch)).sum())
            matrices = {
                layer.name: dense[layer.name][number] if layer.name in dense else torch.zeros(layer.shape)
                for layer in tracked.layers
            }
            by_name = tracked.parameters_of(matrices)
            found = torch.cat([by_name[name].flatten() for name, one in model.named_parameters() if one.requires_grad])
            close(found, expected, 1e-4)


def test_curvature_is_the_second_derivative_through_the_outputs(trained: Trained) -> None:
    task, model, example = trained.toy.task, trained.model(), trained.toy.train[0]
    passes = GradientPasses(model, task, track(model), batch_tokens=None, draws=1000, seed=0)
    trained_ones = trained_parameters(model)
    size = sum(one.numel() for one in trained_ones.values())
    direction = torch.randn(size, generator=torch.Generator().manual_seed(0))
    matrices = passes.tracked.matrices(_taken_apart(model, direction))
    found = sum(
        (row.root_curvature[0] * sum(one.inner(matrices[name])[0] for name, one in row.gradients.items())) ** 2
        for row in passes.rows([example])
    )

    batch = batch_of(task, [example])
    outputs = task.outputs(model, batch)
    # J v by two backward passes, then v^T J^T H J v with H from the loss itself.
    dummy = torch.zeros_like(outputs, requires_grad=True)
    pulled = torch.autograd.grad(outputs, list(trained_ones.values()), dummy, create_graph=True, materialize_grads=True)
    inner = sum((one * part).sum() for one, part in zip(pulled, _taken_apart(model, direction).values(), strict=True))
    (along,) = torch.autograd.grad(inner, dummy)
    leaf = outputs.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(task.loss(leaf, batch).sum(), leaf, create_graph=True)
    expected = (torch.autograd.grad((gradient * along).sum(), leaf)[0] * along).sum()
    assert float(found) == pytest.approx(float(expected), rel=0.25)  # of 1,000 draws, where it is drawn at all


def test_curvature_of_an_example_does_not_depend_on_its_batch(trained: Trained) -> None:
    task, model, examples = trained.toy.task, trained.model(), trained.toy.train[:4]
    passes = GradientPasses(model, task, track(model), batch_tokens=None, draws=3, seed=0)
    together = _curvature(passes, examples)
    for number, example in enumerate(examples):
        close(_curvature(passes, [example])[0], together[number], 1e-3)


def test_other_batches_and_another_order_give_the_same_scores(trained: Trained, tmp_path: Path) -> None:
    toy, as_they_are = trained.toy, trained.index()
    one_by_one = build(trained, tmp_path, list(reversed(toy.train)), batch_tokens=1)
    scores = []
    for index in (one_by_one, as_they_are):
        found = Attributor(trained.model(), toy.task, index).scores(toy.queries)
        scores.append(found[:, torch.tensor([index.example_ids.index(one["example_id"]) for one in toy.train])])
    close(*scores, 1e-4)


def test_replay_gives_the_derivative_that_training_again_finds(trained: Trained) -> None:
    task, toy, run = trained.toy.task, trained.toy, trained.run
    model = trained.model()
    batch = batch_of(task, toy.queries[:1])
    with torch.no_grad():
        batch = choose_targets(task, task.outputs(model, batch), batch)
    task.measurement(task.outputs(model, batch), batch).sum().backward()
    direction = {name: one.grad for name, one in model.named_parameters() if one.requires_grad and one.grad is not None}
    names = [name for name, one in model.named_parameters() if one.requires_grad]
    whole = {name: direction.get(name, torch.zeros_like(model.get_parameter(name))).unsqueeze(0) for name in names}
    row = replay(run, task, toy.train, whole, into=trained.into)[0]

    chosen = row.abs().topk(2).indices.tolist()
    for place in chosen:
        example_id, step = run.example_ids[place], 0.02
        ends = []
        for weight in (1 + step, 1 - step):
            weights = {example_id: weight}
            ends.append(reexecute(run, task, toy.train, weights=weights, into=trained.into))
        found = sum(((ends[0][name] - ends[1][name]).double() * whole[name][0]).sum() for name in names) / (2 * step)
        assert float(row[place]) == pytest.approx(float(found), rel=0.05, abs=1e-5)


def test_a_target_is_chosen_once_and_then_measured_as_named_on_every_model(trained: Trained) -> None:
    task, toy, attributor = trained.toy.task, trained.toy, trained.attributor()
    base = trained.base()
    for query, result in zip(toy.queries, attributor.attribute(toy.queries, top_k=3), strict=True):
        with torch.no_grad():
            batch = batch_of(task, [query])
            tuned = task.outputs(attributor.model, batch)
            named = choose_targets(task, tuned, batch)
            other = task.outputs(base, batch)
            assert result.target == targets_of(task, named)[0]
            assert result.measurement == pytest.approx(float(task.measurement(tuned, named)), rel=1e-4, abs=1e-5)
            assert result.base_measurement == pytest.approx(float(task.measurement(other, named)), rel=1e-4, abs=1e-5)
            # Named, it stays what it is, whatever a model predicts.
            again = choose_targets(task, other, named)
            assert {name: one.tolist() for name, one in again.items()} == {k: v.tolist() for k, v in named.items()}


def test_the_model_runs_to_choose_targets_only_where_that_changes_something(trained: Trained) -> None:
    task, toy, model = trained.toy.task, trained.toy, trained.model()
    runs: list[None] = []
    model.register_forward_hook(lambda *_: runs.append(None))
    for queries in ([aim(task, toy.queries[0], one) for one in toy.targets] or toy.train[:2], toy.queries):
        batch = batch_of(task, queries)
        runs.clear()
        chosen = with_targets(task, model, batch)
        assert chosen.keys() == batch.keys()
        assert len(runs) == any(not torch.equal(chosen[name], batch[name]) for name in batch)


def test_what_is_explained_can_be_named(trained: Trained) -> None:
    task, toy, attributor = trained.toy.task, trained.toy, trained.attributor()
    measured = []
    for target in toy.targets:
        (result,) = attributor.attribute([aim(task, toy.queries[0], target)], top_k=2)
        measured.append(round(result.measurement, 5))
    assert len(set(measured)) == len(toy.targets)
    if toy.bad_target is not None:
        with pytest.raises(InputError) as refused:
            aim(task, toy.queries[0], toy.bad_target)
        assert refused.value.field == "target"


def test_changes_from_the_base_model_add_up(trained: Trained) -> None:
    attributor = trained.attributor()
    for result in attributor.attribute(trained.toy.queries, top_k=2):
        assert result.base_measurement is not None
        assert result.modules_residual is not None
        whole = result.measurement - result.base_measurement
        split = sum(one["change"] for one in result.modules) + result.modules_residual
        assert split == pytest.approx(whole, rel=1e-4, abs=1e-5)


def test_influences_are_what_training_again_without_an_example_changes(trained: Trained) -> None:
    task, toy, run, attributor = trained.toy.task, trained.toy, trained.run, trained.attributor()
    scores = attributor.scores(toy.queries[:1])[0]
    batch, model = batch_of(task, toy.queries[:1]), trained.model()
    with torch.no_grad():
        batch = choose_targets(task, task.outputs(model, batch), batch)
        before = task.measurement(task.outputs(model, batch), batch)
    strongest, changes = scores.abs().topk(6).indices, []
    for row in strongest.tolist():
        weights = {attributor.index.example_ids[row]: 0.0}
        put_parameters(model, reexecute(run, task, toy.train, weights=weights, into=trained.into))
        with torch.no_grad():
            changes.append(float(before - task.measurement(task.outputs(model, batch), batch)))
    assert float(torch.corrcoef(torch.stack([torch.tensor(changes), scores[strongest]]))[0, 1]) > 0.9


def test_predictions_are_json_one_an_example(trained: Trained) -> None:
    task, toy, model = trained.toy.task, trained.toy, trained.model()
    batch = batch_of(task, toy.queries)
    with torch.no_grad():
        found = predictions_of(task, task.outputs(model, batch), batch)
    assert len(found) == len(toy.queries)
    for prediction in found:
        assert (prediction is not None) == isinstance(task, PredictingTask)
        json.dumps(prediction, allow_nan=False)
        projected = projection_of(task, prediction)
        assert projected.label is None or isinstance(projected.label, str)
        assert projected.confidence is None or 0 <= projected.confidence <= 1


def test_sizes_are_those_of_batches_of_one(trained: Trained) -> None:
    task, train = trained.toy.task, trained.toy.train
    assert example_sizes(task, train) == [next(iter(task.collate([one]).values())).numel() for one in train]


def test_units_are_parts_of_the_input_at_positions_of_the_batch(trained: Trained) -> None:
    task, train = trained.toy.task, trained.toy.train
    if not isinstance(task, UnitsTask):
        assert not any(field.kind == "text" and field.role == "input" for field in fields_of(task)) or (
            trained.toy.name == "language"
        )
        return
    for example, size in zip(train, example_sizes(task, train), strict=True):
        units = task.units(example)
        assert units
        assert all(0 <= unit.position < size for unit in units)
        assert [unit.position for unit in units] == sorted({unit.position for unit in units})
        for unit in units:
            assert example[unit.field][unit.start : unit.end].strip()


def test_content_is_digested_whatever_the_order_and_changes_with_what_is_read(trained: Trained) -> None:
    task, train = trained.toy.task, trained.toy.train
    found = content_digest(task, train)
    assert content_digest(task, list(reversed(train))) == found
    fields = fields_of(task)
    assert (found is None) == (bool(fields) and all(field.plain for field in fields))
    if found is not None:
        other = copy.deepcopy(trained.toy.train)
        _change_what_is_read(other[0])
        try:
            assert content_digest(task, other) != found
        finally:
            _change_what_is_read(other[0])


def test_an_index_is_refused_by_a_task_that_is_another(trained: Trained) -> None:
    attributor = trained.attributor()
    attributor.index.check_task(copy.copy(trained.toy.task))

    class Other(type(trained.toy.task)):  # type: ignore[misc]
        """Of another name and with another description."""

        def describe(self) -> dict[str, Any]:
            return {"type": "another"}

    other = copy.copy(trained.toy.task)
    other.__class__ = Other
    with pytest.raises(DigestMismatchError):
        attributor.index.check_task(other)


def test_what_names_no_target_and_cannot_be_measured_is_refused(trained: Trained) -> None:
    task, toy = trained.toy.task, trained.toy
    if toy.name != "language":
        assert without_targets(task, toy.queries)
        return
    with pytest.raises(InputError) as refused:
        trained.attributor().attribute([{"prompt": "the film is"}])
    assert refused.value.field == "target"


@pytest.mark.slow
def test_onnx_runtime_gives_the_outputs_of_torch(trained: Trained, tmp_path: Path) -> None:
    from audit_service.prediction.export import export_onnx

    task, toy = trained.toy.task, trained.toy
    if not isinstance(task, ExportableTask) or not isinstance(task, PredictingTask):
        return
    manifest = export_onnx(trained.model(), task, toy.train, tmp_path / "onnx", model_digest="toy")
    assert manifest["parity"]["largest_gap"] < 1e-4


def _change_what_is_read(example: dict[str, Any]) -> None:
    """Inverts what the fields of an example point to, and puts it back when it is called again."""
    if "image" in example and example["image"].endswith(".png"):
        with Image.open(example["image"]) as picture:
            inverted = ImageOps.invert(picture)
        inverted.save(example["image"])
    elif "image" in example:
        np.save(example["image"], 1 - np.load(example["image"], allow_pickle=False))
    else:
        example["x"] = [-one for one in example["x"]]


def _taken_apart(model: nn.Module, flat: Tensor) -> dict[str, Tensor]:
    parameters = trained_parameters(model)
    parts = flat.split([one.numel() for one in parameters.values()])
    return {name: part.view(one.shape) for (name, one), part in zip(parameters.items(), parts, strict=True)}


def _curvature(passes: GradientPasses, examples: Sequence[Example]) -> Tensor:
    """Each example's curvature along a fixed direction, ``[B]``."""
    generator = torch.Generator().manual_seed(1)
    matrices = {layer.name: torch.randn(layer.shape, generator=generator) for layer in passes.tracked.layers}
    total: Any = 0.0
    for row in passes.rows(examples):
        along: Any = sum(one.inner(matrices[name]) for name, one in row.gradients.items())
        total = total + (row.root_curvature * along) ** 2
    return total
