"""Promises: scores of an index over a few segments are those of a for-loop, and closer to replay than one step at the
final weights; the segments need no more of a training than its two ends, and the model is left as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from influence_engine import Attributor, IndexSettings, InfluenceIndex, Run
from influence_engine.errors import SettingsError
from influence_engine.gradients import track
from influence_engine.index.building.approximation import Approximation, approximation_of
from influence_engine.index.building.provenance import Provenance
from influence_engine.index.unrolling.source_segments import CURVATURE, UNROLLING, segment_propagators
from influence_engine.index.unrolling.trajectory import initial_weights, linear_path, recorded_trajectory
from tests.influence_engine.following import (
    SINGLE,
    StoppedError,
    attributed,
    from_transformers,
    recorded,
    replayed,
    weights_of,
)
from tests.influence_engine.vectors import make_network

SEGMENTS = SINGLE.model_copy(update={"approximation": "segments"})


def by_hand(model: nn.Module, base: nn.Module, task: Any, train: Any, queries: Any, time: float, count: int) -> Tensor:
    """``[Q, N]`` in double precision, one example and output after the other, with dense matrices."""
    model, base = copy.deepcopy(model).double(), base.double()
    parameters, end, start = list(model.parameters()), weights_of(model), weights_of(base)

    def flat(scalar: Tensor) -> Tensor:
        return torch.cat([part.flatten() for part in torch.autograd.grad(scalar, parameters, retain_graph=True)])

    def outputs(example: Any) -> tuple[Tensor, dict[str, Tensor]]:
        batch = task.collate([example])
        batch["x"] = batch["x"].double()
        return task.outputs(model, batch), batch

    measured = torch.stack([flat(task.measurement(*outputs(query)).sum()) for query in queries])
    sensitivity = measured.new_zeros(len(train), measured.shape[1])
    for number in range(count):
        share = (number + 0.5) / count
        for name, parameter in model.named_parameters():
            parameter.data = (1 - share) * start[name] + share * end[name]
        losses, ggn = [], 0.0
        for example in train:
            found, batch = outputs(example)
            losses.append(flat(task.loss(found, batch).sum()))
            jacobian = torch.stack([flat(one) for one in found[0]])
            shares = found[0].detach().softmax(0)
            ggn = ggn + jacobian.T @ (shares.diag() - shares.outer(shares)) @ jacobian / len(train)
        assert isinstance(ggn, Tensor)
        values, vectors = torch.linalg.eigh(ggn)
        values = values.clamp_min(1e-14)
        left = (-values * time / count).exp()
        sensitivity = sensitivity @ (vectors * left) @ vectors.T
        sensitivity -= torch.stack(losses) @ (vectors * ((1 - left) / values)) @ vectors.T / len(train)
    return measured @ sensitivity.T


@pytest.mark.parametrize(("count", "time"), [(1, 3.0), (3, 20.0)])
def test_the_scores_are_those_of_a_loop_over_segments_examples_and_outputs(
    count: int,
    time: float,
    base: nn.Module,
    vector_model: nn.Module,
    vector_task: Any,
    vector_train: Any,
    vector_queries: Any,
    index_folder: Path,
) -> None:
    start = initial_weights(track(vector_model), vector_model, base)
    assert all(torch.equal(start[name], tensor) for name, tensor in weights_of(base).items())
    chosen = SEGMENTS.model_copy(update={"metric": "identity", "damping": 1 / time, "segments": count})
    index = InfluenceIndex.build(vector_model, vector_task, vector_train, index_folder, chosen, base=base)
    found = Attributor(vector_model, vector_task, index).scores(vector_queries)
    expected = by_hand(vector_model, base, vector_task, vector_train, vector_queries, time, count)
    assert float((found - expected).norm() / expected.norm()) < 1e-3


def test_both_ends_and_checkpoints_are_closer_to_replay_than_one_step_at_the_end(
    task: Any, make_model: Callable[..., nn.Module], make_examples: Callable[..., Any], tmp_path: Path
) -> None:
    train, queries = make_examples(40), make_examples(6, seed=1)
    run = recorded(task, make_model(), train, tmp_path / "run")
    exact: Tensor | None = None
    cosines: dict[tuple[str, str], float] = {}
    for name in ("segments", "final"):
        chosen = SINGLE.model_copy(update={"approximation": name})
        with_record = attributed(run, task, train, tmp_path / name, from_transformers, approximation=name)
        index = InfluenceIndex.build(
            run.load_model(), task, train, tmp_path / f"{name}-2", chosen, base=run.load_base()
        )
        if exact is None:
            exact = replayed(with_record, run, train, queries, from_transformers)
        for known, one in (("record", with_record), ("ends", Attributor(run.load_model(), task, index))):
            cosines[known, name] = float(torch.cosine_similarity(one.scores(queries), exact, dim=1).mean())
    assert cosines["ends", "segments"] > cosines["ends", "final"] + 0.03
    assert cosines["record", "segments"] > cosines["record", "final"] + 0.03


def test_where_both_ends_are_known_the_linear_path_between_them_is_unrolled(
    base: nn.Module, vector_model: nn.Module, vector_task: Any, vector_train: Any, tmp_path: Path
) -> None:
    index = InfluenceIndex.build(vector_model, vector_task, vector_train, tmp_path, base=base)
    assert (index.manifest.approximation, index.manifest.damping_source) == ("segments", "displacement")
    assert "index.approximation: final" in index.tiers["refined"]
    with pytest.raises(SettingsError, match="follows the training trajectory; it has no damping"):
        Attributor(vector_model, vector_task, index).scores(vector_train[:1], damping=2 * index.manifest.damping)


def test_examples_outside_the_sample_have_the_sensitivities_of_equal_ones_in_it(
    base: nn.Module,
    vector_model: nn.Module,
    vector_task: Any,
    vector_train: Any,
    vector_queries: Any,
    tmp_path: Path,
) -> None:
    twins = [*vector_train, *({**one, "example_id": f"twin-{one['example_id']}"} for one in vector_train)]
    chosen = SEGMENTS.model_copy(update={"sample": 60})
    index = InfluenceIndex.build(vector_model, vector_task, twins, tmp_path, chosen, base=base)
    scores = Attributor(vector_model, vector_task, index).scores(vector_queries)
    assert float((scores[:, :60] - scores[:, 60:]).norm() / scores.norm()) < 1e-4


def test_a_build_stopped_along_the_trajectory_goes_on_to_the_same_index_and_leaves_the_model_as_it_was(
    base: nn.Module, vector_model: nn.Module, vector_task: Any, vector_train: Any, tmp_path: Path
) -> None:
    before = weights_of(vector_model)
    chosen = SEGMENTS.model_copy(update={"sample": 16})
    seen: list[str] = []

    def stop(stage: str, done: int, total: int, note: str = "") -> None:
        if stage == UNROLLING:
            raise StoppedError

    def watch(stage: str, done: int, total: int, note: str = "") -> None:
        seen.append(stage)

    whole = InfluenceIndex.build(vector_model, vector_task, vector_train, tmp_path / "whole", chosen, base=base)
    with pytest.raises(StoppedError):
        InfluenceIndex.build(
            vector_model, vector_task, vector_train, tmp_path / "cut", chosen, base=base, progress=stop
        )
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights_of(vector_model).items())
    assert list((tmp_path / "cut" / "building").glob("*/segments.safetensors"))
    again = InfluenceIndex.build(
        vector_model, vector_task, vector_train, tmp_path / "cut", chosen, base=base, progress=watch
    )
    assert again.manifest.content_digest == whole.manifest.content_digest
    assert CURVATURE not in seen
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights_of(vector_model).items())


def test_what_cannot_be_had_is_said_or_one_step_taken(
    vector_model: nn.Module, vector_task: Any, vector_train: Any, tmp_path: Path
) -> None:
    with pytest.raises(
        SettingsError, match=r"is 'segments', but the base model, where the trajectory begins, is not known"
    ):
        InfluenceIndex.build(vector_model, vector_task, vector_train, tmp_path / "index", SEGMENTS)
    with pytest.raises(SettingsError, match=r"is 'segments', but the weights did not start at the base model's"):
        InfluenceIndex.build(
            vector_model, vector_task, vector_train, tmp_path / "index", SEGMENTS, base=make_network(seed=7)
        )
    index = InfluenceIndex.build(vector_model, vector_task, vector_train, tmp_path / "index", base=make_network(seed=7))
    assert (index.manifest.approximation, index.manifest.damping_source) == ("final", "heuristic")


def test_a_record_that_cannot_be_executed_again_still_has_its_checkpoints(vector_run: Run, base: nn.Module) -> None:
    def chosen(**what: Any) -> Approximation:
        return approximation_of(IndexSettings(), Provenance({}, **what))

    assert chosen(record=vector_run, why_not_recorded=None) == Approximation("unrolled", vector_run)
    assert chosen(record=vector_run, why_not_recorded="it was resumed") == Approximation("segments", vector_run, 3)
    assert chosen(base=base) == Approximation("segments", None, 3)
    assert chosen() == Approximation("final")
    assert approximation_of(IndexSettings(damping=0.1), Provenance({}, base=base)).name == "final"


def test_a_head_that_was_initialised_anew_stays_at_its_final_weights(base: nn.Module, vector_model: nn.Module) -> None:
    nn.init.normal_(base[3].weight)
    start = initial_weights(track(vector_model), vector_model, base)
    assert torch.equal(start["3.weight"], vector_model[3].weight)
    assert torch.equal(start["0.weight"], base[0].weight)


@pytest.mark.parametrize("count", [1, 2, 5, 40])
def test_points_of_a_record_lie_between_its_checkpoints(count: int, vector_run: Run) -> None:
    points = recorded_trajectory(vector_run, 7.0, count, torch.device("cpu"))
    assert sum(point.time for point in points) == pytest.approx(7.0)
    first, last = (vector_run.checkpoint(vector_run.checkpoints[place])[0]["0.weight"] for place in (0, -1))
    distances = [float((point.weights["0.weight"] - first).norm()) for point in points]
    assert distances == sorted(distances)
    assert distances[0] > 0
    assert float((points[-1].weights["0.weight"] - last).norm()) > 0


def test_points_of_a_linear_path_are_the_middles_of_its_segments() -> None:
    points = linear_path({"w": torch.zeros(1)}, {"w": torch.ones(1)}, 6.0, 3)
    assert [float(point.weights["w"]) for point in points] == pytest.approx([1 / 6, 1 / 2, 5 / 6])
    assert [point.time for point in points] == [2.0, 2.0, 2.0]


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 1000), st.floats(1e-3, 1.0))
def test_propagators_are_the_limit_of_many_small_steps_of_gradient_flow(
    count: int, dimensions: int, seed: int, time: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    draw = torch.randn(count, dimensions, dimensions, generator=generator, dtype=torch.float64)
    ggns = draw @ draw.transpose(1, 2) / dimensions
    gradients = torch.randn(count, 1, dimensions, generator=generator, dtype=torch.float64)
    propagators = segment_propagators([(ggn, time) for ggn in ggns])
    found = torch.stack([gradient @ each for gradient, each in zip(gradients, propagators, strict=True)]).sum(0)
    stepped, steps = torch.zeros(1, dimensions, dtype=torch.float64), 4000
    for ggn, gradient in zip(ggns, gradients, strict=True):
        for _ in range(steps):
            stepped = stepped + time / steps * (gradient - stepped @ ggn)
    assert torch.allclose(found, stepped, rtol=1e-2, atol=1e-3)
