"""Promises: harm is what influences on held-out examples add up to; planted errors stand out; folds are honest."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from influence_engine import Attributor, FinetuneSettings, IndexSettings, InfluenceIndex, Run, finetune
from influence_engine.errors import DataError, DigestMismatchError, RecordError, SettingsError
from influence_engine.evaluation import CrossValidation, Suspect, rank_suspects, seen_in_training

EXACT = IndexSettings(dtype="float32", damping=0.05)
FLIPPED = range(4, 60, 10)


@pytest.fixture(scope="module")
def task(labelling_task: Any) -> Any:
    return labelling_task


@pytest.fixture(scope="module")
def attributor(vector_run: Run, task: Any, vector_train: Any, tmp_path_factory: pytest.TempPathFactory) -> Attributor:
    folder = tmp_path_factory.mktemp("suspects")
    index = InfluenceIndex.build_from_run(vector_run, task, vector_train, folder, EXACT, into=network())
    return Attributor(vector_run.load_model(network()), task, index)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.LayerNorm(12), nn.Linear(12, 3))


def clouds(count: int, *, seed: int, prefix: str) -> list[dict[str, Any]]:
    """Three clouds well apart, every label right."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.eye(3, 6).repeat(count // 3, 1) * 3 + 0.7 * torch.randn(count, 6, generator=generator)
    return [{"example_id": f"{prefix}{row:03d}", "x": x[row].tolist(), "label": row % 3} for row in range(count)]


def by_row(suspects: Sequence[Suspect]) -> list[Suspect]:
    return sorted(suspects, key=lambda suspect: suspect.row)


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_harm_is_minus_the_mean_of_the_influences_on_held_out_examples_one_by_one(
    attributor: Attributor, vector_queries: Any, vector_train: Any, batch_size: int
) -> None:
    suspects = by_row(rank_suspects(attributor, vector_queries, vector_train, batch_size=batch_size))

    assert [suspect.example_id for suspect in suspects] == attributor.index.example_ids
    for suspect in suspects[:10]:
        influences = [float(attributor.scores([query])[0, suspect.row]) for query in vector_queries]
        assert suspect.harm == pytest.approx(-sum(influences) / len(influences), rel=1e-4, abs=1e-7)
        assert suspect.harmed_share == sum(influence < 0 for influence in influences) / len(influences)


def test_the_target_of_a_held_out_example_is_its_label_whatever_the_model_predicts(
    attributor: Attributor, vector_queries: Any, vector_train: Any
) -> None:
    query = vector_queries[0]
    harms = [
        [one.harm for one in by_row(rank_suspects(attributor, [{**query, "label": label}], vector_train))]
        for label in (0, 1, 2)
    ]

    for label, harm in enumerate(harms):
        expected = (-attributor.scores([{**query, "label": label}])[0]).tolist()
        assert harm == pytest.approx(expected, rel=1e-5, abs=1e-8)
    assert harms[0] != pytest.approx(harms[1], rel=0.1)


def test_losses_and_fields_are_those_of_the_example_whatever_the_order_given(
    attributor: Attributor, task: Any, vector_queries: Any, vector_train: Any
) -> None:
    suspects = rank_suspects(attributor, vector_queries, vector_train[::-1])

    by_id = {example["example_id"]: example for example in vector_train}
    for suspect in suspects:
        example = by_id[suspect.example_id]
        batch = task.collate([example])
        with torch.no_grad():
            loss = float(task.loss(task.outputs(attributor.model, batch), batch))
        assert suspect.loss == pytest.approx(loss, rel=1e-5, abs=1e-7)
        assert (suspect.fields, suspect.label) == (
            {"x": example["x"], "label": example["label"]},
            str(example["label"]),
        )
        assert suspect.source == "clouds"


def test_self_influence_is_the_influence_on_ones_own_loss(
    attributor: Attributor, vector_queries: Any, vector_train: Any
) -> None:
    suspects = by_row(rank_suspects(attributor, vector_queries, vector_train))

    on_log_odds = attributor.scores(vector_train).diagonal()
    for suspect, influence in zip(suspects, on_log_odds.tolist(), strict=True):
        # The loss is softplus(-log-odds): its derivative is minus the probability of the other labels.
        others = 1 - float(torch.exp(torch.tensor(-suspect.loss)))
        assert suspect.self_influence == pytest.approx(influence * others, rel=1e-3, abs=1e-7)


@pytest.mark.parametrize("by", ["harm", "loss", "self_influence", "out_of_sample_confidence"])
def test_suspects_are_sorted_by_the_measure_asked_for_and_ranked_by_all(
    attributor: Attributor, vector_queries: Any, vector_train: Any, by: Any
) -> None:
    confidence = {example["example_id"]: row / 100 for row, example in enumerate(vector_train)}
    suspects = rank_suspects(
        attributor, vector_queries, vector_train, by=by, out_of_sample_confidence=confidence, batch_size=4
    )

    values = [getattr(suspect, by) for suspect in suspects]
    assert values == sorted(values, reverse=by != "out_of_sample_confidence")
    assert [suspect.rank_by(by) for suspect in suspects] == list(range(1, 61))
    assert sorted(suspect.rank_by_loss for suspect in suspects) == list(range(1, 61))
    assert all(suspect.out_of_sample_confidence == confidence[suspect.example_id] for suspect in suspects)


def test_planted_wrong_labels_are_among_the_most_harmful_and_of_high_loss(task: Any, tmp_path: Path) -> None:
    train = clouds(60, seed=1, prefix="train-")
    for row in FLIPPED:
        train[row]["label"] = (train[row]["label"] + 1) % 3
    settings = FinetuneSettings(epochs=8, batch_size=12, learning_rate=0.02)
    run = finetune(task, network(), train, settings=settings, record_to=tmp_path / "run", device="cpu")
    index = InfluenceIndex.build_from_run(run, task, train, tmp_path / "index", EXACT, into=network(), device="cpu")

    suspects = rank_suspects(
        Attributor(run.load_model(network()), task, index, device="cpu"), clouds(30, seed=2, prefix="held-"), train
    )

    planted = {train[row]["example_id"] for row in FLIPPED}
    assert {suspect.example_id for suspect in suspects[: 2 * len(planted)]} >= planted
    assert all(suspect.rank_by_loss <= 30 for suspect in suspects if suspect.example_id in planted)


def test_held_out_examples_that_were_trained_on_are_named(vector_queries: Any, vector_train: Any) -> None:
    repeated = {**vector_train[5], "example_id": "again", "source": "elsewhere"}

    assert seen_in_training(vector_queries, vector_train) == []
    assert seen_in_training([*vector_queries, repeated], vector_train) == ["again"]


def test_there_must_be_held_out_examples(attributor: Attributor, vector_train: Any) -> None:
    with pytest.raises(DataError, match="no held-out examples"):
        rank_suspects(attributor, [], vector_train)


def test_other_training_examples_than_those_of_the_index_are_refused(
    attributor: Attributor, vector_queries: Any, vector_train: Any
) -> None:
    with pytest.raises(DigestMismatchError, match="not those of the index"):
        rank_suspects(attributor, vector_queries, vector_train[1:])


def test_a_ranking_by_confidences_that_are_not_there_is_refused(
    attributor: Attributor, vector_queries: Any, vector_train: Any
) -> None:
    with pytest.raises(SettingsError, match="CrossValidation"):
        rank_suspects(attributor, vector_queries, vector_train, by="out_of_sample_confidence")


def validation(run: Run, task: Any, train: Any, cache: Path, **options: Any) -> CrossValidation:
    return CrossValidation(run, task, train, cache, into=network(), device="cpu", **{"folds": 3, **options})


def test_a_confidence_is_that_of_the_runs_training_without_the_examples_fold(
    vector_run: Run, task: Any, vector_train: Any, tmp_path: Path
) -> None:
    crossed = validation(vector_run, task, vector_train, tmp_path)

    confidence = crossed.out_of_sample_confidence()

    assert set(confidence) == {example["example_id"] for example in vector_train}
    absent = crossed.left_out[1]
    remaining = [example for example in vector_train if example["example_id"] not in absent]
    asked = [example for example in vector_train if example["example_id"] in absent]
    base = vector_run.load_base(network())
    model = finetune(task, base, remaining, settings=vector_run.settings, device="cpu").model
    batch = task.collate(asked)
    with torch.no_grad():
        expected = (-task.loss(task.outputs(model, batch), batch)).exp().tolist()
    assert [confidence[example["example_id"]] for example in asked] == pytest.approx(expected, rel=1e-5)


def test_every_example_is_left_out_once_and_every_label_is_spread_evenly(
    vector_run: Run, task: Any, vector_train: Any, tmp_path: Path
) -> None:
    left_out = validation(vector_run, task, vector_train, tmp_path, folds=4).left_out

    labels = {example["example_id"]: example["label"] for example in vector_train}
    assert sorted(example_id for fold in left_out for example_id in fold) == sorted(labels)
    for label in (0, 1, 2):
        counts = [sum(labels[example_id] == label for example_id in fold) for fold in left_out]
        assert max(counts) - min(counts) <= 1
    assert validation(vector_run, task, vector_train[::-1], tmp_path, folds=4).left_out == left_out
    assert validation(vector_run, task, vector_train, tmp_path, folds=4, seed=1).left_out != left_out


def test_an_interrupted_cross_validation_goes_on_without_repeating_a_fold(
    vector_run: Run, task: Any, vector_train: Any, tmp_path: Path
) -> None:
    def interrupting(stage: str, done: int, total: int, note: str = "") -> None:
        if stage == "fold 2 of 3" and done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        validation(vector_run, task, vector_train, tmp_path / "a", progress=interrupting).out_of_sample_confidence()
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "a").iterdir()}
    steps: list[tuple[str, int]] = []
    goes_on = validation(
        vector_run,
        task,
        vector_train,
        tmp_path / "a",
        progress=lambda stage, done, total, note="": steps.append((stage, total)),
    )

    assert goes_on.missing == [1, 2]
    confidence = goes_on.out_of_sample_confidence()

    assert len(written) == 1
    assert all(path.stat().st_mtime_ns == then for path, then in written.items())
    assert [total for stage, total in steps if stage == "fold 1 of 3"] == [1]
    assert goes_on.missing == []
    assert confidence == validation(vector_run, task, vector_train, tmp_path / "b").out_of_sample_confidence()


def test_folds_of_another_number_or_seed_are_other_trainings(
    vector_run: Run, task: Any, vector_train: Any, tmp_path: Path
) -> None:
    validation(vector_run, task, vector_train, tmp_path).out_of_sample_confidence()

    assert validation(vector_run, task, vector_train, tmp_path, folds=2).missing == [0, 1]
    assert validation(vector_run, task, vector_train, tmp_path, seed=1).missing == [0, 1, 2]


@pytest.mark.parametrize("folds", [-1, 0, 1, 61])
def test_a_number_of_folds_that_cannot_be_is_refused(
    vector_run: Run, task: Any, vector_train: Any, tmp_path: Path, folds: int
) -> None:
    with pytest.raises(SettingsError, match="at least 2 and at most the number of training examples, 60"):
        validation(vector_run, task, vector_train, tmp_path, folds=folds)


def test_a_task_that_predicts_no_labels_is_refused(
    vector_run: Run, vector_task: Any, vector_train: Any, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match="predicts no labels"):
        validation(vector_run, vector_task, vector_train, tmp_path)


def test_a_run_of_another_trainer_is_refused_and_why_is_said(
    vector_run: Run, task: Any, vector_train: Any, tmp_path: Path
) -> None:
    shutil.copytree(vector_run.folder, tmp_path / "run")
    manifest = {**vector_run.manifest, "recorded_by": "transformers.Trainer", "settings": None}
    (tmp_path / "run" / "manifest.json").write_text(json.dumps(manifest))

    with pytest.raises(RecordError, match=r"recorded by transformers\.Trainer, which leaves no settings"):
        validation(Run.open(tmp_path / "run"), task, vector_train, tmp_path / "cache")


@pytest.mark.parametrize("content", ["{", "[]", '{"train-0000": 0.5}'])
def test_a_damaged_result_of_a_fold_is_refused_and_named(
    vector_run: Run, task: Any, vector_train: Any, tmp_path: Path, content: str
) -> None:
    crossed = validation(vector_run, task, vector_train, tmp_path, folds=2)
    crossed.out_of_sample_confidence()
    (file, *_) = tmp_path.iterdir()
    file.write_text(content)

    with pytest.raises(RecordError, match=file.name):
        crossed.out_of_sample_confidence()
