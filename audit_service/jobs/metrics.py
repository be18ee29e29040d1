"""What jobs say to Prometheus: all that other metrics of the service need to know of them is here.

Results are counted where the service runs, once each: the process that works on jobs comes and goes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prometheus_client import Counter, Gauge, Histogram

BUCKETS = (-2.0, -1.0, -0.5, 0.0, 0.25, 0.5, 0.75, 0.9, 1.1, 1.25, 1.5, 2.0, 3.0, 5.0)

fidelity_ratio = Histogram(
    "audit_influence_fidelity_ratio",
    "Measured over predicted change of the measurement; 1 is right, below 0 the direction was wrong.",
    ["model", "tier", "kind"],
    buckets=BUCKETS,
)
submitted_jobs = Counter("audit_jobs_submitted_total", "Jobs submitted, known ones included.", ["model"])

jobs_by_state = Gauge(
    "audit_jobs",
    "Jobs in the queue on disk, by state.",
    ["model", "state"],
    multiprocess_mode="mostrecent",  # every worker of the service reads the same queue
)

STATES = ("queued", "running", "done", "failed", "cancelled")
TIERS = ("estimated", "replayed")
KINDS = ("remove", "relabel", "edit")


def start(model: str) -> None:
    """Creates every series at zero: one that never occurred would drop out of sums."""
    submitted_jobs.labels(model)
    for tier in TIERS:
        for kind in KINDS:
            fidelity_ratio.labels(model, tier, kind)


def show(model: str, states: Mapping[str, int]) -> None:
    """How many jobs there are in each state."""
    for state in STATES:
        jobs_by_state.labels(model, state).set(states.get(state, 0))


def count(model: str, result: Mapping[str, Any]) -> None:
    """One finished job."""
    for tier, ratio in result["change"]["ratio"].items():
        if ratio is not None and tier in TIERS:
            fidelity_ratio.labels(model, tier, result["kind"]).observe(ratio)
