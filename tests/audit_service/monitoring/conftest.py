"""A small baseline with odd names."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from audit_service.monitoring.drift_baseline import Distribution, DriftBaseline
from audit_service.monitoring.metrics import CONFIDENCE_BUCKETS, bound


@pytest.fixture
def baseline() -> DriftBaseline:
    """Of a model whose labels and groups have quotes, newlines and emoji in their names."""

    def distribution(shares: dict[str, float], by: str = "") -> Distribution:
        return Distribution(by=by, shares=shares, thresholds={"psi": {200: 0.1, 1000: 0.05}, "js": {200: 0.02}})

    bins = [bound(one) for one in CONFIDENCE_BUCKETS]
    values: dict[str, Any] = {
        "model": "sentiment:0123456789ab",
        "model_digest": "0123456789abcdef",
        "index_digest": "fedcba",
        "tier": "estimated",
        "created": "2030-01-01T00:00:00+00:00",
        "predictions": 400,
        "explanations": 400,
        "minimum_predictions": 200,
        "minimum_explanations": 50,
        "false_alarm_rate": 2e-4,
        "signals": {
            "prediction": distribution({"negative": 0.4, 'pos"itive\n🎭': 0.6, "__other__": 0.0}),
            "confidence": distribution(dict(zip(bins, np.full(len(bins), 1 / len(bins)).tolist(), strict=True))),
            "embedding": distribution({"0": 0.3, "1": 0.7}),
        },
        "influence": [
            distribution(
                {
                    "label=a/proponent": 0.4,
                    "label=a/opponent": 0.1,
                    "label=b\n/proponent": 0.3,
                    "label=b\n/opponent": 0.2,
                },
                "label",
            )
        ],
        "outside_index": {"share": 0.01, "thresholds": {"share": {50: 0.1}}},
        "top_share": {"0.1": 1.0},
        "centres": [[0.0, 1.0], [1.0, 0.0]],
        "outcomes": {},
    }
    return DriftBaseline.model_validate(values)
