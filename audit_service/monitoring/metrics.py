"""The metrics of a replica: counters and fixed histograms, so that workers, services and replicas add up in PromQL.

They are module-level, as multi-process mode needs; nothing is opened before a series is asked for. ``model`` is
``NAME:`` and the first twelve characters of the model's digest, so that a canary is judged by its own baseline. The
few gauges tell what is loaded: of several processes the most recent one counts, and what is no longer so is set to
zero (a gauge cannot be removed in multi-process mode). None takes a number that is not finite (``finite``).
"""

from __future__ import annotations

from audit_service.monitoring.finite import Counter, Gauge, Histogram

CONFIDENCE_BUCKETS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
"""Upper bounds of the bins of a probability, in which confidence drift and calibration are counted."""

TOP_SHARE_BUCKETS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0)
DURATION_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
FIDELITY_BUCKETS = (-2.0, -1.0, -0.5, 0.0, 0.25, 0.5, 0.75, 0.9, 1.1, 1.25, 1.5, 2.0, 3.0, 5.0)

STAGES = ("gradient", "encode", "search", "fetch", "differences", "total")
OUTCOMES = ("ok", "refused", "unavailable", "failed")
TIERS = ("estimated", "refined", "replayed", "measured", "none")
PREDICTING_TIERS = ("estimated", "replayed")
CHANGES = ("remove", "relabel", "edit")
"""Of the training data: what measured explanations train again with."""

JOB_STATES = ("queued", "running", "done", "failed", "cancelled")
DROP_REASONS = (
    "store_unavailable",
    "not_encodable",
    "not_recordable",
    "unreadable_input",
    "sample_queue_full",
    "sample_not_explained",
)
"""Of the last two a sampled explanation is lost, of the others a prediction's record."""

predictions = Counter("audit_predictions_total", "Audited predictions.", ["model", "label"])
confidence = Histogram(
    "audit_prediction_confidence_ratio",
    "Probability of the predicted label.",
    ["model"],
    buckets=CONFIDENCE_BUCKETS,
)
clusters = Counter(
    "audit_embedding_cluster_total", "Predictions by the nearest cluster of the model's features.", ["model", "cluster"]
)
influence_shares = Counter(
    "audit_influence_share_total",
    "Sampled explanations' shares of absolute influence, by group of training examples; a grouping's sum is the "
    "number of explanations.",
    ["model", "group", "polarity"],
)
top_share = Histogram(
    "audit_influence_top_share_ratio",
    "Share of all influence that the ten strongest training examples of a sampled explanation carry.",
    ["model"],
    buckets=TOP_SHARE_BUCKETS,
)
outside_index = Counter(
    "audit_queries_outside_index_total",
    "Sampled explanations whose gradient the index keeps less of than of 99% of held-out examples.",
    ["model"],
)
reference_shares = Gauge(
    "audit_reference_share_ratio", "The reference's share of each bin of a signal.", ["model", "signal", "bin"]
)
explanations = Counter(
    "audit_explanations_total", "Explanations that were asked for.", ["model", "tier", "outcome", "cache"]
)
explanation_seconds = Histogram(
    "audit_explanation_duration_seconds",
    "Time of an explanation; total as the asking service sees it, the other stages in the engine, a batch at a time.",
    ["model", "stage"],
    buckets=DURATION_BUCKETS,
)
# Every worker of a service reads the same queue: the most recent look counts.
jobs = Gauge("audit_jobs", "Jobs in the queue on disk, by state.", ["model", "state"])
index_info = Gauge("audit_index_info", "1 for the index in use.", ["model", "index", "dataset_digest"])
index_rows = Gauge("audit_index_rows", "Training examples of the index in use.", ["model"])
index_created = Gauge("audit_index_created_timestamp_seconds", "When the index in use was built.", ["model"])
fidelity = Histogram(
    "audit_influence_fidelity_ratio",
    "Measured over predicted change of the measurement; 1 is right, below 0 the direction was wrong.",
    ["model", "tier", "kind"],
    buckets=FIDELITY_BUCKETS,
)
dropped = Counter(
    "audit_records_dropped_total", "Records and sampled explanations that were lost.", ["model", "reason"]
)
delayed = Counter(
    "audit_record_write_failures_total",
    "Attempts to write records that failed; they wait and are tried again.",
    ["model"],
)
outcomes = Counter("audit_outcomes_total", "True labels that arrived.", ["model", "label", "outcome"])
outcomes_by_group = Counter(
    "audit_outcomes_by_group_total", "True labels that arrived, by group.", ["model", "group", "outcome"]
)
outcome_confidence = Histogram(
    "audit_outcome_confidence_ratio",
    "Confidence of the predictions whose true label arrived, by whether they were right.",
    ["model", "outcome"],
    buckets=CONFIDENCE_BUCKETS,
)


def model_label(name: str, digest: str | None) -> str:
    """The label ``model`` of a config's model: ``NAME:`` and twelve characters of the digest."""
    return f"{name}:{(digest or 'unknown').removeprefix('sha256:')[:12]}"


def bound(value: float) -> str:
    """A bucket's upper bound as the exposition spells it."""
    return repr(float(value))
