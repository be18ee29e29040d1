"""Events with a known shape, and a baseline built of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from audit_service.config import AuditConfig
from audit_service.drift.baseline_building import HeldOut, build_baseline
from audit_service.drift.signals import Explained, Predicted
from audit_service.monitoring.drift_baseline import DriftBaseline

GROUPS = (("label", "a"), ("label", "b"), ("batch", "old"), ("batch", "new\n🎭"))


def predicted(count: int = 300, *, share_of_a: float = 0.5, centre: float = 0.0, seed: int = 0) -> Predicted:
    """Predictions of two labels, with features around two centres."""
    random = np.random.default_rng(seed)
    is_a = random.random(count) < share_of_a
    confidences = 0.5 + 0.5 * random.random(count)
    features = random.normal(centre, 0.1, (count, 4)).astype(np.float32) + 5 * is_a[:, None]
    return Predicted(["a" if one else "b" for one in is_a], confidences.tolist(), features)


def explained(count: int = 200, *, share_of_new: float = 0.2, outside: float = 0.01, seed: int = 0) -> Explained:
    """Explanations that lean on the new batch as much as is said."""
    random = np.random.default_rng(seed)
    groups = []
    for _ in range(count):
        new = float(np.clip(share_of_new + random.normal(0, 0.03), 0, 1))
        groups.append(
            {
                ("label", "a", "proponent"): 0.3,
                ("label", "a", "opponent"): 0.2,
                ("label", "b", "proponent"): 0.25,
                ("label", "b", "opponent"): 0.25,
                ("batch", "old", "proponent"): 0.6 * (1 - new),
                ("batch", "old", "opponent"): 0.4 * (1 - new),
                ("batch", "new\n🎭", "proponent"): 0.6 * new,
                ("batch", "new\n🎭", "opponent"): 0.4 * new,
            }
        )
    return Explained("estimated", groups, [0.05] * count, (random.random(count) < outside).tolist())


@pytest.fixture
def config() -> AuditConfig:
    """A config that names nothing that exists."""
    values: dict[str, Any] = {
        "name": "letters",
        "task": {"labels": ["a", "b"]},
        "base_model": {"path": "nowhere"},
        "data": {"train": {"csv": "nowhere.csv"}},
        "monitoring": {"clusters": 2, "groups": ["label", "batch"]},
    }
    return AuditConfig.model_validate(values)


@pytest.fixture
def baseline(config: AuditConfig) -> DriftBaseline:
    """The baseline of such events."""
    truths = ["a"] * 300
    return build_baseline(config, HeldOut(predicted(), explained(), truths), model_digest="m" * 64, index_digest="i")
