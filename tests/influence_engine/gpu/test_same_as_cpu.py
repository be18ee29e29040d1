"""A GPU gives what the CPU gives: gradients, scores, explanations, replayed rows, refined influences, retrainings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from influence_engine import Attributor, IndexSettings, InfluenceIndex
from influence_engine.attribution.build_replay_basis import build_basis
from influence_engine.errors import SettingsError
from influence_engine.evaluation import Removal, Retraining, check_index
from influence_engine.gradients import tracing, track
from influence_engine.replay import replay
from influence_engine.resources import to_device
from influence_engine.training import FinetuneSettings, LoraSettings, Run, finetune, reexecute

DEVICES = ("cpu", "cuda")
KINDS: dict[str, dict[str, Any]] = {
    "all weights": {},
    "upper layer": {"trainable": 1},
    "adapters": {"trainable": "lora", "lora": LoraSettings(r=2)},
    "dropout": {"dropout": 0.2},
}


@pytest.fixture
def train(make_examples: Callable[..., Any]) -> list[dict[str, Any]]:
    return list(make_examples(36))


@pytest.fixture
def queries(make_examples: Callable[..., Any]) -> list[dict[str, Any]]:
    return list(make_examples(6, seed=9))


@pytest.fixture
def recorded(task: Any, make_model: Callable[..., nn.Module], train: Any, tmp_path: Path) -> Callable[[str, str], Run]:
    def make(kind: str, device: str) -> Run:
        common = {"epochs": 2, "batch_size": 6, "learning_rate": 5e-3, "seed": 3}
        settings = FinetuneSettings.model_validate({**common, **KINDS[kind]})
        folder = tmp_path / f"run-{device}"
        return finetune(task, make_model(dropout=0.1), train, settings=settings, record_to=folder, device=device)

    return make


def off(found: Tensor, expected: Tensor) -> float:
    return float((found.cpu() - expected.cpu()).norm() / expected.norm())


def directions(run: Run, width: int = 3) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(width, *tensor.shape, generator=generator) for name, tensor in run.checkpoint(0)[0].items()
    }


@pytest.mark.parametrize("kind", ["all weights", "upper layer", "adapters"])
def test_per_example_gradients(kind: str, recorded: Any, task: Any, train: Any) -> None:
    run = recorded(kind, "cpu")
    found: dict[str, list[Tensor]] = {}
    for device in DEVICES:
        model = run.load_model().to(device).eval()
        batch = to_device(task.collate(train), torch.device(device))
        with tracing(model, task, track(model).layers, batch) as trace:
            gradients = trace.layer_gradients(task.loss(trace.outputs, trace.batch))
        found[device] = [gradient.dense().flatten(1) for gradient in gradients.values()]
    for one, other in zip(found["cuda"], found["cpu"], strict=True):
        assert off(one, other) < 1e-5


@pytest.mark.parametrize("approximation", ["final", "segments", "unrolled"])
def test_one_index_answers_the_same_on_both(
    approximation: Any, recorded: Any, task: Any, train: Any, queries: Any, tmp_path: Path
) -> None:
    run = recorded("upper layer", "cpu")
    settings = IndexSettings(approximation=approximation, dtype="float32")
    InfluenceIndex.build_from_run(run, task, train, tmp_path / "index", settings, device="cpu")
    scores, answers = {}, {}
    for device in DEVICES:
        index = InfluenceIndex.open(tmp_path / "index", device=device)
        attributor = Attributor(run.load_model(), task, index, base_model=run.load_base(), device=device)
        scores[device] = attributor.scores(queries)
        answers[device] = attributor.attribute(queries, top_k=5, polarity="each")

    assert off(scores["cuda"], scores["cpu"]) < 1e-5
    for one, other in zip(answers["cuda"], answers["cpu"], strict=True):
        assert [example.example_id for example in one.examples] == [example.example_id for example in other.examples]
        assert [example.influence for example in one.examples] == pytest.approx(
            [example.influence for example in other.examples], rel=1e-4
        )
        assert one.measurement == pytest.approx(other.measurement, rel=1e-5)
        assert one.base_measurement == pytest.approx(other.base_measurement, rel=1e-5)


@pytest.mark.parametrize("approximation", ["final", "segments", "unrolled"])
def test_an_index_built_on_either_gives_the_same_influences(
    approximation: Any, recorded: Any, task: Any, train: Any, queries: Any, tmp_path: Path
) -> None:
    run = recorded("upper layer", "cpu")
    settings = IndexSettings(approximation=approximation, dtype="float32")
    scores = {}
    for device in DEVICES:
        index = InfluenceIndex.build_from_run(run, task, train, tmp_path / device, settings, device=device)
        scores[device] = Attributor(run.load_model(), task, index, device=device).scores(queries)

    assert off(scores["cuda"], scores["cpu"]) < 1e-5


def test_an_index_in_sixteen_bits_is_searched_on_the_gpu(
    recorded: Any, task: Any, train: Any, queries: Any, tmp_path: Path
) -> None:
    run = recorded("upper layer", "cuda")
    index = InfluenceIndex.build_from_run(run, task, train, tmp_path / "index", device="cuda")
    attributor = Attributor(run.load_model(), task, index)

    found = attributor.attribute(queries, top_k=5)

    assert attributor.device.type == "cuda"
    for explanation, row in zip(found, attributor.scores(queries), strict=True):
        assert [example.row for example in explanation.examples] == row.abs().topk(5).indices.tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_replayed_rows(kind: str, recorded: Any, task: Any, train: Any) -> None:
    run = recorded(kind, "cuda")
    there, again = (replay(run, task, train, directions(run), at_once=3, device="cuda") for _ in range(2))
    assert torch.equal(there, again)
    if kind != "dropout":  # the random numbers of a GPU are others
        assert off(there, replay(run, task, train, directions(run), at_once=3, device="cpu")) < 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_executing_the_recorded_steps_again_ends_in_the_recorded_weights(
    kind: str, recorded: Any, task: Any, train: Any
) -> None:
    run = recorded(kind, "cuda")
    parameters = reexecute(run, task, train, device="cuda")
    recorded_end = run.checkpoint(len(run.schedule))[0]
    for name, tensor in parameters.items():
        torch.testing.assert_close(tensor.cpu(), recorded_end[name], rtol=0, atol=0)


def test_a_retraining_measures_the_same(recorded: Any, task: Any, train: Any, queries: Any, tmp_path: Path) -> None:
    run = recorded("upper layer", "cpu")
    removal = Removal.of([train[3]["example_id"], train[7]["example_id"]])
    measured = [
        Retraining(run, task, train, queries, tmp_path / device, device=device).measurements([removal])
        for device in DEVICES
    ]
    assert off(measured[1], measured[0]) < 1e-4


def test_the_refined_tier(recorded: Any, task: Any, train: Any, queries: Any, tmp_path: Path) -> None:
    run = recorded("upper layer", "cpu")
    settings = IndexSettings(approximation="final", dimensions=8, coordinates=200, dtype="float32")
    InfluenceIndex.build_from_run(run, task, train, tmp_path / "index", settings, device="cpu")
    scores = {}
    for device in DEVICES:
        index = InfluenceIndex.open(tmp_path / "index", device=device)
        attributor = Attributor(run.load_model(), task, index, device=device)
        attributor.refine_with(train)
        scores[device] = attributor.scores(queries, "refined")
    assert off(scores["cuda"], scores["cpu"]) < 1e-3


def test_a_basis_and_a_check_are_built_on_the_gpu(
    recorded: Any, task: Any, train: Any, make_examples: Any, tmp_path: Path
) -> None:
    run = recorded("upper layer", "cuda")
    index = InfluenceIndex.build_from_run(run, task, train, tmp_path / "index", device="cuda")
    attributor = Attributor(run.load_model(), task, index)
    held_out = make_examples(24, seed=5)

    build_basis(run, attributor, train, held_out[:12], 8)
    check_index(attributor, Retraining(run, task, train, held_out[12:], tmp_path / "retrainings"))
    (found,) = attributor.attribute(held_out[:1])

    assert found.tier == "replayed"
    assert found.quality["share_in_basis"] > 0
    assert found.examples[0].error_90 is not None


def test_an_index_on_one_device_and_a_model_on_the_other_are_refused(
    recorded: Any, task: Any, train: Any, tmp_path: Path
) -> None:
    run = recorded("upper layer", "cpu")
    index = InfluenceIndex.build_from_run(run, task, train, tmp_path / "index", device="cpu")
    with pytest.raises(SettingsError, match="index is on cpu"):
        Attributor(run.load_model(), task, index, device="cuda")
