"""What recording one prediction's metrics costs, in microseconds, with the metrics files of multi-process mode.

    python benchmarks/recording_cost.py

Label, confidence, the nearest of 8 clusters of 384 features, and the draw whether the prediction is explained in the
background. Prints the median of 20 rounds of 2,000 predictions each.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time

from support import machine, parser_of, show

MUST_BE_AT_MOST_US = 50.0
ROUNDS, PREDICTIONS = 20, 2_000


def parser() -> argparse.ArgumentParser:
    """The options."""
    return parser_of(__doc__)


def main() -> None:
    """Measures and prints."""
    options = parser().parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder  # before prometheus_client is imported
        import numpy as np

        from audit_service.engine.client import HttpEngine
        from audit_service.monitoring.model_metrics import DropMetrics, PredictionMetrics
        from audit_service.monitoring.statistics import NearestCentre
        from audit_service.serving.sampler import Sampler

        random = np.random.default_rng(0)
        nearest = NearestCentre(random.normal(size=(8, 384)).astype(np.float32))
        features = random.normal(size=(1, 384)).astype(np.float32)
        recorder = PredictionMetrics("benchmark:1", ["negative", "positive"], 8)
        sampler = Sampler(
            "benchmark",
            rate=0.01,
            waiting=64,
            engine=lambda: HttpEngine("http://127.0.0.1:1"),
            drops=DropMetrics("benchmark:1"),
        )
        example, outputs = {"text": "a film"}, {"label": "positive", "confidence": 0.93}
        parts = {
            "label and confidence": lambda: recorder.predicted("positive", 0.93),
            "cluster": lambda: recorder.clustered(nearest.of(features)),
            "sampling": lambda: sampler.offer(example, outputs),
        }
        costs = {}
        for name, work in parts.items():
            rounds = []
            for _ in range(ROUNDS):
                start = time.perf_counter()
                for _ in range(PREDICTIONS):
                    work()
                rounds.append((time.perf_counter() - start) / PREDICTIONS * 1e6)
            costs[name] = statistics.median(rounds)
    together = sum(costs.values())
    report = {
        "must_be_at_most_us": MUST_BE_AT_MOST_US,
        "together_us": round(together, 2),
        **{name: round(cost, 2) for name, cost in costs.items()},
        "machine": machine(),
    }
    show(report, options)


if __name__ == "__main__":
    main()
