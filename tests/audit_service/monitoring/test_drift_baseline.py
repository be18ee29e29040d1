"""The baseline: whole, unchanged, and of this model and this index, or refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit_service.config import MonitoringSettings
from audit_service.monitoring.drift_baseline import BASELINE_FILE, DriftBaseline, confidence_bin, read_baseline
from audit_service.monitoring.metrics import CONFIDENCE_BUCKETS
from influence_engine.errors import DigestMismatchError, RecordError


def read(folder: Path, **changes: str) -> DriftBaseline | None:
    return read_baseline(folder, **{"model_digest": "0123456789abcdef", "index_digest": "fedcba", **changes})


def test_what_is_written_is_read(tmp_path: Path, baseline: DriftBaseline) -> None:
    baseline.write(tmp_path)

    found = read(tmp_path)

    assert found is not None
    assert found.signals == baseline.signals
    assert found.groups == ["label=a", "label=b\n"]
    assert sum(1 for _ in found.bins()) == 3 + 12 + 2 + 4 + 1 + 1


def test_where_there_is_none_there_is_none(tmp_path: Path) -> None:
    assert read(tmp_path) is None


@pytest.mark.parametrize(("which", "word"), [("model_digest", "model"), ("index_digest", "index")])
def test_a_reference_of_another_model_or_index_is_refused(
    tmp_path: Path, baseline: DriftBaseline, which: str, word: str
) -> None:
    baseline.write(tmp_path)

    with pytest.raises(DigestMismatchError, match=rf"of the {word} with digest .*reference build"):
        read(tmp_path, **{which: "another"})


def test_a_reference_that_was_changed_is_refused(tmp_path: Path, baseline: DriftBaseline) -> None:
    file = baseline.write(tmp_path)
    raw = json.loads(file.read_text())
    raw["signals"]["prediction"]["thresholds"]["psi"]["200"] = 9.0
    file.write_text(json.dumps(raw))

    with pytest.raises(DigestMismatchError, match="has changed since it was written"):
        read(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", '{"format": 99}', '{"format": 1}'])
def test_a_damaged_reference_is_refused_with_what_helps(tmp_path: Path, content: str) -> None:
    (tmp_path / BASELINE_FILE).write_text(content)

    with pytest.raises(RecordError):
        read(tmp_path)


@given(st.floats(0, 1))
def test_a_confidence_falls_into_the_bin_whose_bound_it_does_not_exceed(value: float) -> None:
    upper = float(confidence_bin(value))

    assert value <= upper
    assert all(value > other for other in CONFIDENCE_BUCKETS if other < upper)


def test_the_default_settings_are_those_of_the_convention() -> None:
    settings = MonitoringSettings()

    assert settings.windows == ["1h", "24h"]
    assert settings.stale_after_s == 90 * 86_400


@pytest.mark.parametrize(("volume", "level"), [(0, 0.1), (200, 0.1), (999, 0.1), (1000, 0.05), (10**6, 0.05)])
def test_a_larger_window_has_the_threshold_of_its_volume(baseline: DriftBaseline, volume: int, level: float) -> None:
    assert baseline.signals["prediction"].level(volume) == level
    assert baseline.signals["prediction"].steps() == [(200, 0.1), (1000, 0.05)]
