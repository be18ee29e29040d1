"""Promises: nine in ten of the measured changes lie within the intervals, also of queries they were not fitted on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from influence_engine.errors import IndexFormatError
from influence_engine.index.calibration import Calibration, TierError, covered, fit_error, with_bend

SIZES = torch.tensor([5, 5, 20, 20, 80])


def changes(seed: int, noise: float, share: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    units = torch.rand(200, generator=generator) + 0.5
    scale = SIZES.sqrt().unsqueeze(1) * units
    predicted = scale * torch.randn(5, 200, generator=generator) * 3
    error = noise * scale * torch.randn(5, 200, generator=generator)
    return predicted, predicted * (1 + share * torch.randn(5, 200, generator=generator)) + error, units


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.01, 3), st.floats(0, 1))
def test_intervals_hold_nine_in_ten_changes_of_other_queries(seed: int, noise: float, share: float) -> None:
    predicted, measured, units = changes(seed, noise, share)
    fitted = fit_error(predicted[:, :100], measured[:, :100], SIZES, units[:100])
    own = [one[..., :100] for one in (fitted.slope * predicted, measured)]
    assert covered(fitted, *own, SIZES, fitted.slope * units[:100]) == pytest.approx(0.9, abs=0.01)
    others = [one[..., 100:] for one in (fitted.slope * predicted, measured)]
    assert 0.8 <= covered(fitted, *others, SIZES, fitted.slope * units[100:]) <= 0.98


def test_right_predictions_have_narrow_intervals_and_wrong_ones_wide() -> None:
    predicted, measured, units = changes(0, 0.01, 0.0)
    right = fit_error(predicted, measured, SIZES, units)
    assert right.agreement == pytest.approx(1, abs=1e-3)
    assert right.slope == pytest.approx(1, abs=1e-2)
    assert right.error_90(4, 1.0, 1.0) < 0.1
    wrong = fit_error(predicted, -measured, SIZES, units)
    assert wrong.agreement == pytest.approx(-1, abs=1e-3)
    assert wrong.error_90(4, 1.0, 1.0) > 1.5
    assert wrong.slope == 1.0  # influences are never turned round
    half = fit_error(predicted, 0.5 * measured, SIZES, units)
    assert half.slope == pytest.approx(0.5, abs=0.01)
    assert half.error_90(4, 0.5, 0.5) < 0.1


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.floats(0, 2))
def test_a_large_set_widens_the_intervals_of_large_sets_until_they_hold(seed: int, bend: float) -> None:
    predicted, measured, units = changes(seed, 0.1, 0.1)
    small = fit_error(predicted, measured, SIZES, units)
    generator = torch.Generator().manual_seed(seed)
    large = 10 * units * torch.randn(200, generator=generator)
    off = large + bend * 400 * units * torch.randn(200, generator=generator)
    fitted = with_bend(small, large, off, 400, units)
    within = covered(fitted, small.slope * large[None], off[None], torch.tensor([400]), small.slope * units)
    assert within >= 0.9 - 1e-9
    assert fitted.bend <= 2.2 * bend + 0.1
    assert fitted.error_90(1, 1.0, 0.0) == pytest.approx(small.error_90(1, 1.0, 0.0) + fitted.bend)


def test_it_is_taken_up_only_for_what_it_was_found_for(tmp_path: Path) -> None:
    error = TierError(spread=0.1, share=0.2, agreement=0.9, slope=1.0)
    made = Calibration(about={"index": "a"}, retrainings=5, queries=8, nonlinearity=0.1, tiers={"estimated": error})
    path = tmp_path / "calibration.json"
    assert Calibration.load(path, {"index": "a"}) is None
    made.save(path)
    assert Calibration.load(path, {"index": "a"}) == made
    assert Calibration.load(path, {"index": "b"}) is None
    path.write_text("{}")
    with pytest.raises(IndexFormatError, match="cannot be read"):
        Calibration.load(path, {"index": "a"})
