"""A record holds what replay needs, verifies itself, and gives back the models."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from influence_engine.errors import DigestMismatchError, ModelError, RecordError
from influence_engine.models.loading import model_digest
from influence_engine.tasks import TextClassification, example_sizes
from influence_engine.training import FinetuneSettings, LoraSettings, Run, finetune
from influence_engine.training.loop import PASS_COSTS
from influence_engine.training.optimizers import AdamW
from influence_engine.training.schedule import plan_schedule

SETTINGS = FinetuneSettings(epochs=3, batch_size=4, accumulation=2, learning_rate=5e-3, max_grad_norm=0.02, seed=3)
COUNT = 18


@pytest.fixture(scope="module")
def recorded(
    task: TextClassification,
    make_model: Callable[..., nn.Module],
    make_examples: Callable[..., Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Run:
    folder = tmp_path_factory.mktemp("recorded") / "run"
    return finetune(task, make_model(), make_examples(COUNT), make_examples(6, seed=1), SETTINGS, record_to=folder)


@pytest.fixture
def copied(recorded: Run, tmp_path: Path) -> Path:
    shutil.copytree(recorded.folder, tmp_path / "run")
    return tmp_path / "run"


def test_order_rates_normalisers_and_seeds_are_on_record(
    recorded: Run, task: TextClassification, make_examples: Any
) -> None:
    sizes = example_sizes(task, make_examples(COUNT))
    planned = plan_schedule(SETTINGS, COUNT, sizes, pass_cost=PASS_COSTS["cpu"])
    run = Run.open(recorded.folder)

    assert [str(step) for step in run.schedule.steps()] == [str(step) for step in planned.steps()]
    assert torch.equal(run.learning_rates, planned.learning_rates)
    assert run.example_ids == [f"0-{number}" for number in range(COUNT)]
    assert run.settings == SETTINGS
    assert len(run.losses) == len(run.clip_factors) == 9
    assert bool(((run.clip_factors > 0) & (run.clip_factors <= 1)).all())
    assert bool((run.clip_factors < 1).any())
    assert (run.max_grad_norm, run.dropout, run.epsilon, run.weights) == (0.02, 0.0, 1e-6, {})
    assert (run.replayable, run.why_not_replayable) == (True, None)
    assert run.validation is not None
    assert set(run.validation) == {"examples", "loss", "accuracy"}


def test_the_manifest_names_every_file_and_the_versions(recorded: Run) -> None:
    manifest = json.loads((recorded.folder / "manifest.json").read_text())
    files = {path.relative_to(recorded.folder).as_posix() for path in recorded.folder.rglob("*") if path.is_file()}

    assert set(manifest["files"]) == files - {"manifest.json"}
    assert {"torch", "transformers", "python", "bento-audit"} <= set(manifest["versions"])
    assert not any("partial" in name for name in files)


def test_weights_and_optimiser_state_are_saved_at_about_sqrt_t_checkpoints(recorded: Run) -> None:
    assert recorded.checkpoints == [0, 3, 6, 9]
    start, nothing = recorded.checkpoint(0)
    middle, state = recorded.checkpoint(3)

    assert nothing == {}
    assert list(start) == list(middle) == recorded.trainable or set(start) == set(middle) == set(recorded.trainable)
    assert set(state) == {"first_moment", "second_moment"}
    assert {name: value.shape for name, value in state["first_moment"].items()} == {
        n: v.shape for n, v in start.items()
    }
    with pytest.raises(RecordError, match="step-000004"):
        recorded.checkpoint(4)


def test_a_run_of_sgd_keeps_its_velocity_and_has_no_second_moments(
    task: TextClassification, make_model: Callable[..., nn.Module], make_examples: Callable[..., Any], tmp_path: Path
) -> None:
    settings = FinetuneSettings(optimizer="sgd", epochs=1, batch_size=4, checkpoints=2)
    run = finetune(task, make_model(), make_examples(8), settings=settings, record_to=tmp_path)

    assert run.checkpoints == [0, 1, 2]
    assert set(run.checkpoint(1)[1]) == {"velocity"}
    assert run.second_moments() is None
    assert run.epsilon is None


def test_the_second_moments_are_those_of_the_last_step_without_their_bias(recorded: Run) -> None:
    _, state = recorded.checkpoint(9)
    moments = recorded.second_moments()

    assert moments is not None
    assert set(moments) == set(recorded.trainable)
    assert isinstance(recorded.optimizer, AdamW)
    for name, moment in moments.items():
        torch.testing.assert_close(moment, state["second_moment"][name] / (1 - 0.999**9))


@pytest.mark.parametrize("trainable", ["all", "lora", 1])
def test_base_and_fine_tuned_model_come_back_ready_for_attribution(
    task: TextClassification,
    make_model: Callable[..., nn.Module],
    make_examples: Callable[..., Any],
    tmp_path: Path,
    trainable: Any,
) -> None:
    examples, base = make_examples(8), make_model()
    settings = FinetuneSettings(trainable=trainable, lora=LoraSettings(r=2), epochs=2, batch_size=4, learning_rate=1e-2)
    run = Run.open(finetune(task, base, examples, settings=settings, record_to=tmp_path).folder)

    tuned, start = run.load_model(), run.load_base()

    assert (model_digest(tuned), model_digest(start)) == (run.digests["model"], run.digests["base"])
    batch = task.collate(examples)
    torch.testing.assert_close(task.outputs(start, batch), task.outputs(base, batch))
    assert not torch.allclose(task.outputs(tuned, batch), task.outputs(base, batch), atol=1e-3)
    for model in (tuned, start):
        assert not model.training
        assert [name for name, value in model.named_parameters() if value.requires_grad] == run.trainable
    beside = run.base_beside(tuned)
    assert model_digest(beside) == run.digests["base"]
    assert [name for name, value in beside.named_parameters() if value.requires_grad] == run.trainable
    memory = {name: value.data_ptr() for name, value in tuned.named_parameters()}
    shared = {name for name, value in beside.named_parameters() if value.data_ptr() == memory[name]}
    assert shared == set(memory) - set(run.trainable)
    assert run.load_processor()("good film")["input_ids"] == task.tokenizer("good film")["input_ids"]


class Plain(nn.Module):
    """A model that does not come from transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(24, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, input_ids: Tensor, **unused: Any) -> Any:
        return type("Output", (), {"logits": self.head(self.embedding(input_ids).mean(1))})


def test_a_module_of_ones_own_is_recorded_and_filled_again(
    task: TextClassification, make_examples: Callable[..., Any], tmp_path: Path
) -> None:
    base = Plain()
    settings = FinetuneSettings(epochs=1, batch_size=4)
    run = finetune(task, base, make_examples(8), settings=settings, record_to=tmp_path)

    assert model_digest(run.load_base(Plain())) == model_digest(base) == run.digests["base"]
    assert model_digest(run.load_model(Plain())) == run.digests["model"]
    with pytest.raises(ModelError, match=r"config\.json"):
        run.load_model()
    with pytest.raises(ModelError, match="does not fit Linear"):
        run.load_model(nn.Linear(2, 2))


@pytest.mark.parametrize(
    "name", ["steps.safetensors", "examples.json", "checkpoints/step-000003.safetensors", "model/model.safetensors"]
)
def test_a_file_that_changed_or_is_gone_is_named(copied: Path, name: str) -> None:
    data = bytearray((copied / name).read_bytes())
    data[-3] ^= 1
    (copied / name).write_bytes(data)
    with pytest.raises(DigestMismatchError, match=f"{name} has changed"):
        Run.open(copied)

    (copied / name).unlink()
    with pytest.raises(DigestMismatchError, match=f"{name} is missing"):
        Run.open(copied)


def test_what_is_no_complete_run_is_told_apart(copied: Path, tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="does not exist"):
        Run.open(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RecordError, match="holds no recorded run"):
        Run.open(tmp_path / "empty")

    manifest = json.loads((copied / "manifest.json").read_text())
    for changed, message in (
        ({**manifest, "format_version": 99}, "format version 99, written by .*reads format versions up to"),
        ({**manifest, "format": "x"}, "does not describe a recorded run"),
        ([], "does not describe a recorded run"),
    ):
        (copied / "manifest.json").write_text(json.dumps(changed))
        with pytest.raises(RecordError, match=message):
            Run.open(copied)
    (copied / "manifest.json").write_text("{")
    with pytest.raises(RecordError, match="not valid JSON"):
        Run.open(copied)


def test_a_damaged_checkpoint_is_named(copied: Path) -> None:
    (copied / "checkpoints" / "step-000003.safetensors").write_bytes(b"\xff" * 40)

    with pytest.raises(RecordError, match=r"step-000003\.safetensors is damaged"):
        Run.open(copied, verify=False).checkpoint(3)
