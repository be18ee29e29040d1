"""Fine-tuning: deterministic, weighted as promised, and plain about what it cannot use."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from influence_engine.errors import DataError, ModelError, RecordError, SettingsError
from influence_engine.models.loading import model_digest, save_model
from influence_engine.tasks import TextClassification
from influence_engine.training import Finetuned, FinetuneSettings, LoraSettings, Run, finetune
from influence_engine.training.loop import PASS_COSTS

SETTINGS = FinetuneSettings(epochs=2, batch_size=4, learning_rate=5e-3, seed=3)

Models = Callable[..., nn.Module]
Examples = Callable[..., list[dict[str, Any]]]

VARIANTS = {
    "all weights": {},
    "upper layer": {"trainable": 1},
    "adapters": {"trainable": "lora", "lora": LoraSettings(r=2)},
    "sgd": {"optimizer": "sgd", "learning_rate": 0.05},
    "dropout": {"dropout": 0.2},
    "accumulation": {"accumulation": 2, "max_grad_norm": 0.02},
}


def with_(**changes: Any) -> FinetuneSettings:
    return FinetuneSettings.model_validate({**SETTINGS.model_dump(), **changes})


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_same_settings_give_the_same_weights_recorded_or_not(
    task: TextClassification, make_model: Models, make_examples: Examples, tmp_path: Path, variant: str
) -> None:
    settings, train = with_(**VARIANTS[variant]), make_examples(18)

    first = finetune(task, make_model(), train, settings=settings)
    torch.manual_seed(99)
    second = finetune(task, make_model(), train, settings=settings, record_to=tmp_path)

    assert isinstance(first, Finetuned)
    assert isinstance(second, Run)
    assert model_digest(first.model) == second.digests["model"] != second.digests["base"]
    assert first.losses.tolist() == second.losses.tolist()
    assert first.trainable == second.trainable


def test_another_seed_gives_other_weights(
    task: TextClassification, make_model: Models, make_examples: Examples
) -> None:
    train = make_examples(18)
    first = finetune(task, make_model(), train, settings=SETTINGS)
    second = finetune(task, make_model(), train, settings=with_(seed=4))

    assert model_digest(first.model) != model_digest(second.model)


def test_fine_tuning_learns_what_the_sentences_say(
    task: TextClassification, make_model: Models, make_examples: Examples
) -> None:
    result = finetune(task, make_model(), make_examples(80), make_examples(40, seed=1), with_(epochs=6))

    assert result.validation is not None
    assert result.validation["examples"] == 40
    assert result.validation["accuracy"] >= 0.9
    assert result.losses[-5:].mean() < 0.5 * result.losses[:5].mean()


def test_a_module_that_is_passed_in_is_left_as_it_is(
    task: TextClassification, make_model: Models, make_examples: Examples
) -> None:
    model = make_model()
    before = copy.deepcopy(model.state_dict())

    for trainable in ("all", "lora", 1):
        finetune(task, model, make_examples(8), settings=with_(trainable=trainable))

    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_only_the_upper_layers_and_what_follows_them_change(
    task: TextClassification, make_model: Models, make_examples: Examples
) -> None:
    base = make_model()
    result = finetune(task, base, make_examples(18), settings=with_(trainable=1))

    before = base.state_dict()
    changed = {name for name, value in result.model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == set(result.trainable)
    assert {name.split(".")[3] for name in changed if ".layer." in name} == {"2"}
    assert {"bert.pooler.dense.weight", "classifier.weight"} <= changed


class AbsentTerm(TextClassification):
    """The loss without the terms of some examples, by name rather than by weight."""

    absent: frozenset[str] = frozenset()

    def collate(self, examples: Any) -> dict[str, Tensor]:
        kept = torch.tensor([example["example_id"] not in self.absent for example in examples])
        return {**super().collate(examples), "kept": kept}

    def model_inputs(self, batch: Any) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in super().model_inputs(batch).items() if name != "kept"}

    def loss(self, outputs: Tensor, batch: Any) -> Tensor:
        losses = super().loss(outputs, batch)
        return torch.where(batch["kept"], losses, torch.zeros_like(losses))


@pytest.mark.parametrize("variant", VARIANTS)
def test_weight_zero_is_the_run_in_which_the_loss_term_is_absent_and_all_else_equal(
    task: TextClassification, make_model: Models, make_examples: Examples, variant: str
) -> None:
    settings, train = with_(**VARIANTS[variant]), make_examples(18)
    absent = AbsentTerm(task.tokenizer, task.labels)
    absent.absent = frozenset({"0-3", "0-11"})

    weighted = finetune(task, make_model(), train, settings=settings, weights={"0-3": 0.0, "0-11": 0})
    without = finetune(absent, make_model(), train, settings=settings)
    whole = finetune(task, make_model(), train, settings=settings)

    names = weighted.trainable
    for name in names:
        torch.testing.assert_close(weighted.model.get_parameter(name), without.model.get_parameter(name))
    assert any(not torch.equal(weighted.model.get_parameter(n), whole.model.get_parameter(n)) for n in names)


def test_a_weight_of_one_changes_nothing_and_a_small_one_little(
    task: TextClassification, make_model: Models, make_examples: Examples
) -> None:
    settings, train = with_(optimizer="sgd", learning_rate=0.05), make_examples(18)
    whole = finetune(task, make_model(), train, settings=settings)
    ones = finetune(task, make_model(), train, settings=settings, weights={"0-3": 1.0})
    nearly = finetune(task, make_model(), train, settings=settings, weights={"0-3": 0.999})

    assert model_digest(ones.model) == model_digest(whole.model) != model_digest(nearly.model)
    torch.testing.assert_close(
        nearly.model.get_parameter("classifier.weight"),
        whole.model.get_parameter("classifier.weight"),
        rtol=1e-2,
        atol=1e-4,
    )


def test_progress_counts_every_step_and_says_how_long_it_takes(
    task: TextClassification, make_model: Models, make_examples: Examples
) -> None:
    seen: list[tuple[str, int, int, str]] = []

    def note(stage: str, done: int, total: int, note: str = "") -> None:
        seen.append((stage, done, total, note))

    finetune(task, make_model(), make_examples(18), make_examples(3), SETTINGS, progress=note)

    steps = [(done, total) for stage, done, total, _ in seen if stage == "fine-tuning"]
    assert steps == [(done, 10) for done in range(11)]
    assert "s left" in seen[5][3]
    assert "loss" in seen[5][3]
    assert seen[-1][:3] == ("validation", 3, 3)


def test_no_examples_are_refused(task: TextClassification, make_model: Models) -> None:
    with pytest.raises(DataError, match="no training examples"):
        finetune(task, make_model(), [])


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"label": None}, "training example '0-1': unknown label None"),
        ({"label": "furious"}, "training example '0-1': unknown label 'furious'"),
        ({"text": "  "}, "training example '0-1': 'text' is empty"),
        ({"example_id": None}, "training example 1 has no example_id"),
        ({"example_id": "0-0"}, "training examples 0 and 1 have the same example_id '0-0'"),
    ],
)
def test_a_bad_example_is_refused_by_its_id(
    task: TextClassification, make_model: Models, make_examples: Examples, broken: dict[str, Any], message: str
) -> None:
    train = make_examples(4)
    train[1] |= broken

    with pytest.raises(DataError) as caught:
        finetune(task, make_model(), train)

    assert message in caught.value.message


def test_a_bad_validation_example_is_found_before_training(
    task: TextClassification, make_model: Models, make_examples: Examples
) -> None:
    validation = make_examples(3, seed=1)
    validation[2]["label"] = None

    with pytest.raises(DataError, match="validation example '1-2'"):
        finetune(task, make_model(), make_examples(4), validation)


@pytest.mark.parametrize("weights", [{"unknown": 0.0}, {"0-1": float("nan")}])
def test_a_weight_for_nobody_or_that_is_no_number_is_refused(
    task: TextClassification, make_model: Models, make_examples: Examples, weights: dict[str, float]
) -> None:
    with pytest.raises(DataError, match="weight"):
        finetune(task, make_model(), make_examples(4), settings=SETTINGS, weights=weights)


class Exploding(TextClassification):
    """A loss that is not a number for one example."""

    def loss(self, outputs: Tensor, batch: Any) -> Tensor:
        losses = super().loss(outputs, batch)
        return losses.masked_fill(batch["input_ids"][:, 0] == 1, float("nan"))


def test_a_loss_that_is_not_finite_names_step_and_examples(
    task: TextClassification, make_model: Models, make_examples: Examples
) -> None:
    train = make_examples(12)
    train[7]["text"] = "unheard words"

    with pytest.raises(DataError) as caught:
        finetune(Exploding(task.tokenizer, task.labels), make_model(), train, settings=SETTINGS)

    assert "in step " in caught.value.message
    assert "for the examples 0-7:" in caught.value.message


class Vertical(TextClassification):
    """A finite loss whose slope is infinite."""

    def loss(self, outputs: Tensor, batch: Any) -> Tensor:
        losses = super().loss(outputs, batch)
        return losses + (losses - losses.detach()).abs().sqrt()


def test_a_gradient_that_is_not_finite_is_noticed_in_its_own_step(
    task: TextClassification, make_model: Models, make_examples: Examples
) -> None:
    with pytest.raises(DataError, match="the gradient is not finite in step 1, for the examples 0-"):
        finetune(Vertical(task.tokenizer, task.labels), make_model(), make_examples(12), settings=SETTINGS)


def test_divergence_hints_at_the_learning_rate(
    task: TextClassification, make_model: Models, make_examples: Examples
) -> None:
    settings = with_(optimizer="sgd", learning_rate=1e38, max_grad_norm=None, warmup_ratio=0)

    with pytest.raises(DataError, match="a lower learning rate"):
        finetune(task, make_model(), make_examples(18), settings=settings)


def test_settings_that_do_not_fit_the_model_are_refused(
    task: TextClassification, make_model: Models, make_examples: Examples, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match="the model has 3 layers"):
        finetune(task, make_model(), make_examples(4), settings=with_(trainable=4))
    with pytest.raises(SettingsError, match="no adapter can be put there"):
        finetune(
            task,
            make_model(),
            make_examples(4),
            settings=with_(trainable="lora", lora=LoraSettings(target_modules=["nowhere"])),
        )
    with pytest.raises(SettingsError, match="device 'tpu9'"):
        finetune(task, make_model(), make_examples(4), settings=SETTINGS, device="tpu9")
    with pytest.raises(ModelError, match="there is no model folder"):
        finetune(task, tmp_path / "nothing", make_examples(4), settings=SETTINGS)


def test_a_task_without_labels_needs_a_module_as_base(
    task: TextClassification, make_model: Models, make_examples: Examples, tmp_path: Path
) -> None:
    class Unlabelled:
        collate, outputs, loss, measurement = task.collate, task.outputs, task.loss, task.measurement

    save_model(make_model(), tmp_path / "base")

    with pytest.raises(SettingsError, match="pass a loaded module"):
        finetune(Unlabelled(), tmp_path / "base", make_examples(4), settings=SETTINGS)
    assert finetune(Unlabelled(), make_model(), make_examples(4), make_examples(2), SETTINGS).validation is not None


def test_a_folder_with_another_run_or_anything_else_is_never_overwritten(
    task: TextClassification, make_model: Models, make_examples: Examples, tmp_path: Path
) -> None:
    train, folder = make_examples(8), tmp_path / "run"
    run = finetune(task, make_model(), train, settings=SETTINGS, record_to=folder)

    with pytest.raises(RecordError, match="this very run, complete"):
        finetune(task, make_model(), train, settings=SETTINGS, record_to=folder)
    with pytest.raises(RecordError, match=r"settings\.epochs: 2 in the run, 5 now"):
        finetune(task, make_model(), train, settings=with_(epochs=5), record_to=folder)
    with pytest.raises(RecordError, match=r"data: \w{12}\.\.\. in the run"):
        finetune(task, make_model(), make_examples(8, seed=1), settings=SETTINGS, record_to=folder, reuse=True)
    with pytest.raises(RecordError, match=r"base: \w{12}\.\.\. in the run"):
        finetune(task, make_model(seed=1), train, settings=SETTINGS, record_to=folder)
    with pytest.raises(RecordError, match=r"weights\.0-1: None in the run, 0\.0 now"):
        finetune(task, make_model(), train, settings=SETTINGS, weights={"0-1": 0.0}, record_to=folder)
    assert Run.open(folder).digests == run.digests

    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("a year of work")
    with pytest.raises(RecordError, match="not empty and holds no run"):
        finetune(task, make_model(), train, settings=SETTINGS, record_to=tmp_path / "other")
    with pytest.raises(RecordError, match=r"thesis\.txt cannot be a run's folder"):
        finetune(task, make_model(), train, settings=SETTINGS, record_to=tmp_path / "other" / "thesis.txt")
    assert (tmp_path / "other" / "thesis.txt").read_text() == "a year of work"


def test_the_same_run_can_be_had_again_without_training(
    task: TextClassification, make_model: Models, make_examples: Examples, tmp_path: Path
) -> None:
    train = make_examples(8)
    run = finetune(task, make_model(), train, settings=SETTINGS, record_to=tmp_path, reuse=True)
    seen: list[str] = []

    def note(stage: str, done: int, total: int, note: str = "") -> None:
        seen.append(stage)

    again = finetune(task, make_model(), train, settings=SETTINGS, record_to=tmp_path, reuse=True, progress=note)

    assert again.digests == run.digests
    assert seen == []


def test_sharing_micro_batches_by_length_gives_the_weights_of_padded_ones(
    task: TextClassification, make_model: Models, make_examples: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = make_examples(24)
    settings = FinetuneSettings(epochs=2, batch_size=8, learning_rate=1e-3)
    monkeypatch.setitem(PASS_COSTS, "cpu", 1)
    grouped = finetune(task, make_model(), examples, settings=settings, device="cpu")
    monkeypatch.setitem(PASS_COSTS, "cpu", 10**9)
    padded = finetune(task, make_model(), examples, settings=settings, device="cpu")
    torch.testing.assert_close(grouped.losses, padded.losses, rtol=1e-5, atol=1e-6)
    for one, other in zip(grouped.model.parameters(), padded.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
