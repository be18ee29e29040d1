"""Promises: a replay basis brings exact rows into every answer; outside it, estimates are scaled; it belongs to its
index alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from influence_engine import Attributor, IndexSettings, InfluenceIndex, Run
from influence_engine.attribution.build_replay_basis import build_basis, measurement_directions
from influence_engine.errors import DigestMismatchError, IndexFormatError, SettingsError, TierUnavailableError
from influence_engine.evaluation import Retraining, linear_datamodeling_score, membership, random_removals
from influence_engine.index.replay_basis import ReplayBasis, choose_directions, fit_basis, outside_scale
from influence_engine.replay import replay
from tests.influence_engine.vectors import make_vectors


@pytest.fixture(params=["final", "segments", "unrolled"])
def attributor(
    request: pytest.FixtureRequest,
    vector_run: Run,
    vector_task: Any,
    vector_train: Any,
    vector_model: Any,
    index_folder: Path,
    fresh_network: Any,
) -> Attributor:
    settings = IndexSettings(dtype="float32", approximation=request.param)
    index = InfluenceIndex.build_from_run(
        vector_run, vector_task, vector_train, index_folder, settings, into=fresh_network
    )
    return Attributor(vector_model, vector_task, index)


def test_the_replayed_tier_is_what_replay_says_where_the_basis_spans_the_query(
    attributor: Attributor, vector_run: Run, vector_task: Any, vector_train: Any, fresh_network: Any
) -> None:
    held_out = make_vectors(12, seed=5, prefix="held-")
    with pytest.raises(TierUnavailableError):
        attributor.attribute(held_out[:1], tier="replayed")
    basis = build_basis(vector_run, attributor, vector_train, held_out, 12, into=fresh_network, at_once=4)
    assert basis.width == 12
    assert attributor.index.tiers["replayed"] == "available (12 directions)"

    identity = torch.eye(len(held_out))
    directions = measurement_directions(attributor, held_out, identity, vector_run.trainable)
    exact = replay(vector_run, vector_task, vector_train, directions, into=fresh_network, at_once=4)
    found = attributor.scores(held_out, "replayed")
    scale = float(exact.abs().max())
    torch.testing.assert_close(found, exact, rtol=2e-2, atol=2e-2 * scale)

    (answer,) = attributor.attribute(held_out[:1], top_k=5)
    assert answer.tier == "replayed"
    assert answer.quality["share_in_basis"] == pytest.approx(1.0, abs=1e-3)
    rows = [example.row for example in answer.examples]
    torch.testing.assert_close(
        torch.tensor([example.influence for example in answer.examples]), found[0, rows], rtol=1e-3, atol=1e-4 * scale
    )
    (estimated,) = attributor.attribute(held_out[:1], top_k=5, tier="estimated")
    assert estimated.tier == "estimated"
    assert estimated.quality["share_in_basis"] is None


def test_replayed_influences_predict_retraining_better_than_estimated_ones(
    attributor: Attributor,
    vector_run: Run,
    vector_task: Any,
    vector_train: Any,
    vector_queries: Any,
    fresh_network: Any,
    tmp_path: Path,
) -> None:
    held_out = make_vectors(40, seed=6, prefix="held-")
    build_basis(vector_run, attributor, vector_train, held_out, 10, into=fresh_network, at_once=5)
    retraining = Retraining(
        vector_run, vector_task, vector_train, vector_queries, tmp_path / "cache", into=fresh_network, device="cpu"
    )
    ids = attributor.index.example_ids
    removals = random_removals(ids, 0.05, 40, seed=0)
    removed, measured = membership(removals, ids), retraining.measurements(removals)
    lds = {
        tier: linear_datamodeling_score(attributor.scores(vector_queries, tier), removed, measured).mean
        for tier in ("estimated", "replayed")
    }
    assert lds["replayed"] > lds["estimated"] + (0.02 if attributor.index.manifest.approximation == "final" else 0.0)


def test_a_basis_is_found_again_and_only_by_its_own_index(
    attributor: Attributor, vector_run: Run, vector_train: Any, fresh_network: Any, index_folder: Path
) -> None:
    held_out = make_vectors(12, seed=5, prefix="held-")
    made = build_basis(vector_run, attributor, vector_train, held_out, 8, into=fresh_network, at_once=8)
    again = InfluenceIndex.open(index_folder)
    assert again.basis is not None
    assert torch.equal(again.basis.exact, made.exact)
    assert again.inspect()["tiers"]["replayed"] == "available (8 directions)"
    file = again.folder / "replay.safetensors"
    assert ReplayBasis.load(file, {"build_digest": "another"}) is None
    assert ReplayBasis.load(again.folder / "none", {}) is None

    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(DigestMismatchError, match="has changed since it was written"):
        InfluenceIndex.open(index_folder)
    file.write_bytes(content[:100])
    with pytest.raises(DigestMismatchError, match="has changed since it was written"):
        InfluenceIndex.open(index_folder)
    with pytest.raises(IndexFormatError, match="cannot be read"):
        ReplayBasis.load(file, {})


def test_more_directions_than_the_inputs_span_are_refused(
    attributor: Attributor, vector_run: Run, vector_train: Any, fresh_network: Any
) -> None:
    with pytest.raises(SettingsError, match="Give more of them"):
        build_basis(vector_run, attributor, vector_train, make_vectors(3, seed=5, prefix="h-"), 9, into=fresh_network)


def test_fewer_than_eight_exact_rows_are_no_replay(
    attributor: Attributor, vector_run: Run, vector_train: Any, fresh_network: Any
) -> None:
    with pytest.raises(SettingsError, match="at least 8"):
        build_basis(vector_run, attributor, vector_train, make_vectors(12, seed=5, prefix="h-"), 7, into=fresh_network)


def test_exact_rows_replace_estimates_inside_and_scale_them_outside() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(6, 50, generator=generator)
    estimates = 0.5 * truth  # right up to a factor of two
    coefficients = choose_directions(estimates, 3)
    basis = fit_basis(coefficients @ truth, {1.0: coefficients @ estimates})
    assert basis.agreement == pytest.approx(1.0)
    torch.testing.assert_close(basis.estimated @ basis.estimated.T, torch.eye(3), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(basis.scale, torch.full((50,), 2.0), rtol=1e-3, atol=1e-3)
    corrected = basis.correct(estimates, basis.coefficients(estimates))
    torch.testing.assert_close(corrected, truth, rtol=1e-3, atol=1e-3)
    some = torch.tensor([4, 1])
    torch.testing.assert_close(
        basis.correct(estimates[:, some], basis.coefficients(estimates), some), corrected[:, some], rtol=1e-5, atol=1e-6
    )


def test_the_damping_is_the_one_whose_rows_agree_with_the_replayed() -> None:
    generator = torch.Generator().manual_seed(1)
    exact = torch.randn(4, 30, generator=generator)
    noisy = exact + 2 * torch.randn(4, 30, generator=generator)
    assert fit_basis(exact, {1.0: noisy, 3.0: 0.1 * exact + 0.01 * noisy}).damping == 3.0


def test_the_scale_outside_is_never_negative() -> None:
    exact = torch.tensor([[1.0, -1.0], [1.0, -1.0]])
    scale = outside_scale(exact, torch.ones(2, 2) / 2**0.5)
    assert float(scale.min()) >= 0
