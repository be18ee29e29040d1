"""The Trainer of transformers, recorded: what it really did, and whether it can be executed again."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from influence_engine.errors import RecordError, SettingsError
from influence_engine.models.loading import add_lora, model_digest
from influence_engine.models.trainable import choose_trainable
from influence_engine.training import Run, reexecute
from influence_engine.training.optimizers import SmoothAdamW
from influence_engine.training.trainer.callback import RecordingCallback, RecordingDataset
from tests.influence_engine.training.trainer.trainer_runs import COUNT, Recorded

ARGUMENTS: dict[str, dict[str, Any]] = {
    "one batch a step": {},
    "accumulation": {"gradient_accumulation_steps": 3},
    "no clipping": {"max_grad_norm": 0.0},
    "cosine with warm-up": {"lr_scheduler_type": "cosine", "warmup_steps": 3},
    "a number of steps": {"max_steps": 7, "dataloader_num_workers": 2},
    "evaluation between": {"eval_strategy": "steps", "eval_steps": 2},
}


@pytest.mark.parametrize("case", ARGUMENTS)
def test_the_record_ends_at_the_trainers_model_and_executing_it_again_does_too(
    recorded: Recorded, make_model: Callable[..., nn.Module], case: str
) -> None:
    model = make_model()
    base = model_digest(model)

    run = recorded(model, **ARGUMENTS[case])

    assert run.why_not_replayable is None
    assert (run.digests["model"], run.digests["base"]) == (model_digest(model), base)
    assert model_digest(run.load_base()) == base
    assert len(run.schedule) == recorded.trainer.state.global_step
    assert recorded.reproduces(run)


@pytest.mark.parametrize("kind", ["lora", 1])
def test_adapters_and_upper_layers_are_recorded_as_well(
    recorded: Recorded, make_model: Callable[..., nn.Module], kind: Any
) -> None:
    model = make_model()
    if kind == "lora":
        model = add_lora(model, r=2, alpha=4)
    names = choose_trainable(model, kind)

    run = recorded(model)

    assert run.trainable == names
    assert run.replayable
    assert recorded.reproduces(run)


def test_every_example_is_on_record_once_an_epoch(recorded: Recorded, make_model: Callable[..., nn.Module]) -> None:
    run = recorded(make_model(), eval_strategy="epoch")
    first, second = run.schedule.rows[:COUNT].tolist(), run.schedule.rows[COUNT:].tolist()

    assert sorted(first) == sorted(second) == list(range(COUNT))
    assert first != second
    assert run.example_ids == [f"0-{number}" for number in range(COUNT)]
    assert bool((run.clip_factors < 1).any())
    assert bool((run.losses > 0).all())
    moments = run.second_moments()
    assert moments is not None
    assert set(moments) == set(run.trainable)


def test_learning_rates_are_those_the_optimizer_used(recorded: Recorded, make_model: Callable[..., nn.Module]) -> None:
    run = recorded(make_model(), warmup_steps=4)

    assert run.learning_rates.tolist() == pytest.approx(
        [5e-3 * number / 4 for number in range(4)] + [5e-3 * (12 - number) / 8 for number in range(4, 12)]
    )


class LossByItems(nn.Module):
    """A model that divides its loss by the number of labels in the whole step, as the Trainer asks it to."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.inner = model

    def forward(self, labels: Tensor | None = None, num_items_in_batch: Any = None, **inputs: Any) -> Any:
        output = self.inner(**inputs)
        if labels is not None:
            total = nn.functional.cross_entropy(output.logits, labels, reduction="sum")
            output["loss"] = total / (len(labels) if num_items_in_batch is None else num_items_in_batch)
        return output


class MeanOfMeans(LossByItems):
    """A model that is not told how many labels there are; the Trainer divides by the number of micro-batches."""

    accepts_loss_kwargs = False


@pytest.mark.parametrize(
    ("wrap", "normalizers"),
    [
        # 22 examples in batches of 4, two a step: 8, 8 and the last step with 4 + 2. BERT returns the mean of a
        # micro-batch though it is told the number of labels, so that nobody divides by the number of micro-batches.
        (lambda model: model, [4, 4, 1]),
        (LossByItems, [8, 8, 6]),
        (MeanOfMeans, [8, 8, 2]),
    ],
)
def test_under_accumulation_the_denominators_are_those_the_trainer_really_used(
    recorded: Recorded,
    make_model: Callable[..., nn.Module],
    wrap: Callable[[nn.Module], nn.Module],
    normalizers: list[float],
) -> None:
    run = recorded(wrap(make_model()), gradient_accumulation_steps=2, num_train_epochs=1)

    assert run.why_not_replayable is None
    assert run.schedule.normalizers.tolist() == normalizers
    last = run.schedule.step(3)
    by_batch = [1.0, 1.0] if normalizers[-1] == 6 else [1 / 4, 1 / 2]
    assert [share.tolist() for share in last.shares] == [[by_batch[0]] * 4, [by_batch[1]] * 2]


def test_dropout_with_a_seed_can_be_executed_again(recorded: Recorded, make_model: Callable[..., nn.Module]) -> None:
    run = recorded(make_model(dropout=0.2), dropout_seed=3, gradient_accumulation_steps=2)

    assert run.why_not_replayable is None
    assert run.dropout == pytest.approx(0.2)
    assert len(set(run.schedule.seeds.tolist())) == len(run.schedule)
    assert recorded.reproduces(run)


def test_plain_momentum_of_torch_can_be_executed_again(
    recorded: Recorded, make_model: Callable[..., nn.Module]
) -> None:
    model = make_model()
    run = recorded(model, optimizer=torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.8))

    assert run.why_not_replayable is None
    assert run.optimizer.describe() == {"type": "sgd", "momentum": 0.8, "weight_decay": {}}
    assert recorded.reproduces(run)


def test_groups_with_different_decay_can_be_executed_again(
    recorded: Recorded, make_model: Callable[..., nn.Module]
) -> None:
    model = make_model()
    matrices = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.3}, {"params": others, "weight_decay": 0.0}]

    run = recorded(model, optimizer=SmoothAdamW(groups, lr=5e-3))

    assert run.replayable
    assert set(run.manifest["optimizer"]["weight_decay"]) == {n for n, p in model.named_parameters() if p.ndim > 1}
    assert recorded.reproduces(run)


def test_training_that_stops_early_is_recorded_to_where_it_stopped(
    recorded: Recorded, make_model: Callable[..., nn.Module]
) -> None:
    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop = state.global_step == 5

    model = make_model()
    run = recorded(model, callbacks=(Stop(),))

    assert len(run.schedule) == 5
    assert run.checkpoints[-1] == 5
    assert run.digests["model"] == model_digest(model)
    assert recorded.reproduces(run)


def test_a_run_that_goes_on_from_a_checkpoint_of_the_trainer_says_so(
    recorded: Recorded, make_model: Callable[..., nn.Module]
) -> None:
    first = recorded(make_model(), save_strategy="steps", save_steps=4, max_steps=4)
    checkpoint = recorded.folder / "trainer" / "checkpoint-4"
    assert checkpoint.is_dir()
    recorded.trainer.args.max_steps = 8
    second = RecordingCallback(recorded.task, recorded.folder / "second")
    recorded.trainer.callback_handler.callbacks = [
        callback for callback in recorded.trainer.callback_handler.callbacks if type(callback) is not RecordingCallback
    ]
    recorded.trainer.add_callback(second)
    recorded.trainer.train(resume_from_checkpoint=str(checkpoint))

    run = Run.open(recorded.folder / "second")
    assert first.replayable
    assert run.why_not_replayable is not None
    assert "went on from its step 4" in run.why_not_replayable


def test_rows_never_reach_the_model(recorded: Recorded, make_model: Callable[..., nn.Module]) -> None:
    seen: list[set[str]] = []

    class Strict(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.inner = model

        def forward(self, **inputs: Any) -> Any:
            seen.append(set(inputs))
            inputs.pop("num_items_in_batch", None)
            return self.inner(**inputs)

    recorded(Strict(make_model()), max_steps=1)
    recorded.trainer.evaluate()
    recorded.trainer.predict(RecordingDataset(recorded.examples[:3]))

    assert len(seen) >= 3
    assert all("example_rows" not in names for names in seen)


def test_a_collator_without_rows_is_noticed(recorded: Recorded, make_model: Callable[..., nn.Module]) -> None:
    run = recorded(
        make_model(),
        collator=lambda items: dict(recorded.task.collate([item.example for item in items])),
        max_steps=2,
    )

    assert run.why_not_replayable is not None
    assert "pass data_collator=recording.collate" in run.why_not_replayable
    assert len(run.schedule) == 2


def test_a_data_set_without_rows_is_refused_before_training(
    recorded: Recorded, make_model: Callable[..., nn.Module]
) -> None:
    recording = RecordingCallback(recorded.task, recorded.folder / "run")
    trainer = Trainer(
        make_model(),
        TrainingArguments(output_dir=str(recorded.folder / "trainer"), report_to=[], use_cpu=True),
        train_dataset=recorded.examples,
        data_collator=recorded.task.collate,
        callbacks=[recording],
    )

    with pytest.raises(SettingsError, match=r"wrap the examples in RecordingDataset\(examples\)"):
        trainer.train()
    assert not (recorded.folder / "run").exists()


def test_a_file_is_no_place_for_a_record(recorded: Recorded, make_model: Callable[..., nn.Module]) -> None:
    (recorded.folder / "run").write_text("notes")

    with pytest.raises(RecordError, match="is a file; a run needs a folder"):
        recorded(make_model(), max_steps=2)
    assert (recorded.folder / "run").read_text() == "notes"


def test_a_complete_record_is_never_overwritten(recorded: Recorded, make_model: Callable[..., nn.Module]) -> None:
    run = recorded(make_model(), max_steps=2)

    with pytest.raises(RecordError, match="this very run, complete"):
        recorded(make_model(), max_steps=2)
    with pytest.raises(RecordError, match=r"arguments\.max_steps: 2 in the run, 3 now"):
        recorded(make_model(), max_steps=3)
    assert Run.open(run.folder).digests == run.digests


def test_an_example_can_be_left_out_of_a_recorded_trainers_run(
    recorded: Recorded, make_model: Callable[..., nn.Module]
) -> None:
    run = recorded(make_model())
    whole = reexecute(run, recorded.task, recorded.examples)
    without = reexecute(run, recorded.task, recorded.examples, weights={"0-3": 0.0})

    assert all(bool(value.isfinite().all()) for value in without.values())
    assert any(not torch.allclose(without[name], whole[name], atol=1e-4) for name in whole)


def test_collator_and_data_set_can_be_sent_to_a_worker_process(recorded: Recorded) -> None:
    recording = RecordingCallback(recorded.task, recorded.folder / "run")
    data, collate = pickle.loads(pickle.dumps((RecordingDataset(recorded.examples), recording.collate)))  # noqa: S301

    assert collate([data[2], data[0]])["example_rows"].tolist() == [2, 0]
    with pytest.raises(IndexError):
        data[COUNT]
    assert [item.row for item in data] == list(range(COUNT))
