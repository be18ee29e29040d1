"""Promises: rows are the exact derivatives of the recorded training; interrupted ones go on to the same bits; what has
changed since the recording is refused at the first step that differs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from influence_engine.errors import DigestMismatchError, RecordError, SettingsError
from influence_engine.evaluation import Removal, Retraining
from influence_engine.replay import replay
from influence_engine.training import FinetuneSettings, LoraSettings, RecordedTraining, Run, finetune
from influence_engine.training.frozen_cache import FrozenCache
from influence_engine.training.step import training_step
from tests.influence_engine.vectors import make_network

VARIANTS: dict[str, dict[str, Any]] = {
    "all weights": {},
    "upper layer": {"trainable": 1},
    "adapters": {"trainable": "lora", "lora": LoraSettings(r=2)},
    "sgd": {"optimizer": "sgd", "learning_rate": 0.05},
    "dropout with recorded seeds": {"dropout": 0.2},
    "accumulation and clipping": {"accumulation": 2, "max_grad_norm": 0.02},
    "cosine without clipping": {"schedule": "cosine", "max_grad_norm": None},
}


def directions_for(run: Run, width: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(width, *tensor.shape, generator=generator) for name, tensor in run.checkpoint(0)[0].items()
    }


def whole_graph(run: Run, task: Any, train: Any, directions: dict[str, Tensor]) -> Tensor:
    """The same derivatives with all steps in one autograd graph."""
    training = RecordedTraining.load(run, task, train, device="cpu")
    rule, state = training.update_rule(), training.initial_state()
    weights = torch.ones(len(train), requires_grad=True)
    for step in run.schedule.steps():
        state = training_step(rule, step, training.batches(step), state, weights=weights, differentiable=True).state
    parameters = state.parameters
    rows = []
    for number in range(next(iter(directions.values())).shape[0]):
        end = sum((parameters[name] * directions[name][number]).sum() for name in parameters)
        rows.append(torch.autograd.grad(end, weights, retain_graph=True)[0])
    return torch.stack(rows)


@pytest.mark.parametrize("variant", VARIANTS)
def test_rows_are_the_derivatives_through_all_steps_whatever_is_trained_and_how(
    task: Any, make_model: Callable[..., nn.Module], make_examples: Callable[..., Any], tmp_path: Path, variant: str
) -> None:
    train = make_examples(18)
    common = {"epochs": 2, "batch_size": 4, "learning_rate": 5e-3, "seed": 3}
    settings = FinetuneSettings.model_validate({**common, **VARIANTS[variant]})
    run = finetune(task, make_model(dropout=0.1), train, settings=settings, record_to=tmp_path)
    directions = directions_for(run, 3)

    cache = FrozenCache()
    one_by_one = replay(run, task, list(reversed(train)), directions, frozen_cache=cache)
    together = replay(run, task, train, directions, at_once=2, frozen_cache=cache)

    expected = whole_graph(run, task, train, directions)
    scale = float(expected.abs().max())
    torch.testing.assert_close(one_by_one, expected, rtol=1e-3, atol=1e-4 * scale)
    torch.testing.assert_close(together, one_by_one, rtol=1e-4, atol=1e-5 * scale)


class WithUnused(nn.Module):
    """Has weights that its outputs do not depend on."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = make_network(), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_weights_that_nothing_depends_on_only_decay(
    vector_task: Any, vector_train: Any, tmp_path: Path, optimizer: Any
) -> None:
    train = vector_train[:20]
    settings = FinetuneSettings(
        trainable="all", epochs=1, batch_size=5, learning_rate=0.01, optimizer=optimizer, weight_decay=0.1
    )
    run = finetune(vector_task, WithUnused(), train, settings=settings, record_to=tmp_path)
    directions = directions_for(run, 2)
    zeroed = {name: one * ("unused" not in name) for name, one in directions.items()}

    rows = replay(run, vector_task, train, directions, into=WithUnused())

    assert float(rows.abs().max()) > 0
    torch.testing.assert_close(rows, replay(run, vector_task, train, zeroed, into=WithUnused()))


def test_replayed_influence_predicts_leaving_one_out(
    vector_run: Run,
    vector_task: Any,
    vector_train: Any,
    vector_queries: Any,
    fresh_network: nn.Module,
    tmp_path: Path,
) -> None:
    model = vector_run.load_model(fresh_network)
    named = {name: parameter for name, parameter in model.named_parameters() if name in vector_run.trainable}
    batch = vector_task.collate(vector_queries)
    measured = vector_task.measurement(vector_task.outputs(model, batch), batch)
    each = [torch.autograd.grad(one, list(named.values()), retain_graph=True) for one in measured]
    directions = {name: torch.stack([one[place] for one in each]) for place, name in enumerate(named)}
    rows = replay(vector_run, vector_task, vector_train, directions, into=fresh_network, at_once=8)

    retraining = Retraining(
        vector_run, vector_task, vector_train, vector_queries, tmp_path, into=fresh_network, device="cpu"
    )
    ids = vector_run.example_ids
    without = retraining.measurements([Removal.of([one]) for one in ids])
    changes = (retraining.recorded() - without).T  # [Q, N]
    for found, expected in zip(rows.double(), changes, strict=True):
        assert float(torch.corrcoef(torch.stack([found, expected]))[0, 1]) > 0.9
    slope = float((rows.double() * changes).sum() / rows.double().pow(2).sum())
    assert 0.7 < slope < 1.5  # leaving out one of 60 is no small change of its weight


class StoppedError(Exception):
    """Stands for whatever ends a process."""


def test_an_interrupted_replay_goes_on_to_the_same_bits(
    vector_run: Run,
    vector_task: Any,
    vector_train: Any,
    fresh_network: nn.Module,
    tmp_path: Path,
) -> None:
    directions = directions_for(vector_run, 2)
    expected = replay(vector_run, vector_task, vector_train, directions, into=fresh_network)
    steps: list[int] = []

    def stopping(stage: str, done: int, total: int, note: str = "") -> None:
        steps.append(done)
        if done > total * 2 // 3:
            raise StoppedError

    with pytest.raises(StoppedError):
        replay(
            vector_run,
            vector_task,
            vector_train,
            directions,
            into=fresh_network,
            keep_in=tmp_path,
            save_every_s=0,
            progress=stopping,
        )
    again: list[int] = []
    found = replay(
        vector_run,
        vector_task,
        vector_train,
        directions,
        into=fresh_network,
        keep_in=tmp_path,
        progress=lambda stage, done, total, note="": again.append(done),
    )
    assert again[0] > 0
    assert torch.equal(found, expected)
    # Finished, it is only read.
    assert torch.equal(
        replay(vector_run, vector_task, vector_train, directions, into=fresh_network, keep_in=tmp_path), expected
    )


def test_another_base_is_refused_at_the_first_step_that_differs(
    vector_run: Run, vector_task: Any, vector_train: Any, fresh_network: nn.Module
) -> None:
    class OtherTask(type(vector_task)):  # type: ignore[misc]
        def loss(self, outputs: Tensor, batch: Any) -> Tensor:
            return super().loss(outputs, batch) * 1.01

    with pytest.raises(DigestMismatchError, match=r"step \d+ of the run .* does not come out as recorded"):
        replay(vector_run, OtherTask(), vector_train, directions_for(vector_run, 1), into=fresh_network)


def test_directions_of_other_shapes_are_refused(
    vector_run: Run, vector_task: Any, vector_train: Any, fresh_network: nn.Module
) -> None:
    directions = directions_for(vector_run, 2)
    name = next(name for name, tensor in directions.items() if tensor.dim() == 3)
    for wrong in (
        {**directions, name: directions[name][:1]},
        {**directions, name: directions[name].flatten(1)},
        {key: value for key, value in directions.items() if key != name},
    ):
        with pytest.raises(SettingsError, match=name):
            replay(vector_run, vector_task, vector_train, wrong, into=fresh_network)


def test_a_run_that_cannot_be_replayed_says_why(vector_run: Run, vector_task: Any, vector_train: Any) -> None:
    manifest = {**vector_run.manifest, "replayable": False, "why_not_replayable": "batches carry no rows"}
    run = Run(vector_run.folder, manifest)
    with pytest.raises(RecordError, match="batches carry no rows"):
        replay(run, vector_task, vector_train, directions_for(vector_run, 1))
