"""The section ``monitoring`` of a config: sampling, drift windows, alert thresholds."""

from __future__ import annotations

from pydantic import Field, field_validator

from audit_service.config.sections import DURATION, Section, seconds_of


class MonitoringSettings(Section):
    """What is measured of a served model, and when an alert fires.

    Attributes:
        sample_rate: Share of predictions, chosen uniformly at random, that are explained in the background.
        sample_queue: Chosen predictions that wait for their explanation at most; further ones are dropped and counted.
        groups: Groups of training examples whose influence is watched: ``label``, ``source``, or a metadata column.
        clusters: Clusters of the model's pooled features.
        reference_examples: Held-out examples that the baseline is made of at most; each is explained.
        windows: Time windows of the drift rules; the first is the one that reacts first.
        minimum_predictions: Predictions in a window below which no drift alert fires.
        minimum_explanations: The same for sampled explanations.
        false_alarm_rate: Probability that a window of baseline traffic just above the minimum exceeds a threshold.
        alert_for: How long a threshold must be exceeded.
        explain_latency_s: Seconds that 95% of explanations must not exceed.
        stale_after: Age at which an index counts as stale.
        outcome_groups: Groups, as ``column=value``, by which the accuracy of true labels is counted.
        runbook: Address of the runbook; an alert's link is this, ``#`` and the alert's name in small letters.
        tracing: Whether explanations leave OpenTelemetry spans.
    """

    sample_rate: float = Field(0.01, ge=0.0, le=1.0)
    sample_queue: int = Field(64, ge=1)
    groups: list[str] = Field(default_factory=lambda: ["label", "source"])
    clusters: int = Field(8, ge=2, le=31)
    reference_examples: int = Field(400, ge=20)
    windows: list[str] = Field(default_factory=lambda: ["1h", "24h"], min_length=1)
    minimum_predictions: int = Field(200, ge=10)
    minimum_explanations: int = Field(50, ge=10)
    false_alarm_rate: float = Field(2e-4, gt=0, lt=0.5)
    alert_for: str = "2m"
    explain_latency_s: float = Field(1.0, gt=0)
    stale_after: str = "90d"
    outcome_groups: list[str] = Field(default_factory=list)
    runbook: str = "docs/runbook.md"
    tracing: bool = False

    @field_validator("windows")
    @classmethod
    def _windows(cls, values: list[str]) -> list[str]:
        for value in values:
            _check_duration(value)
        if len(set(values)) != len(values):
            raise ValueError(f"found {values}; each window once")
        return values

    @field_validator("alert_for", "stale_after")
    @classmethod
    def _duration(cls, value: str) -> str:
        return _check_duration(value)

    @field_validator("groups")
    @classmethod
    def _group_names(cls, values: list[str]) -> list[str]:
        for value in values:
            if not value or "=" in value:
                raise ValueError(f"found {value!r}; a group is named by label, source or a metadata column without `=`")
        return values

    @property
    def stale_after_s(self) -> int:
        """``stale_after`` in seconds."""
        return seconds_of(self.stale_after)


def _check_duration(value: str) -> str:
    if not DURATION.fullmatch(value):
        raise ValueError(f"found {value!r}; it should be a time such as 1h, 24h or 30m")
    return value
