"""What a service measures of itself: metrics, drift baseline and sampled explanations."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from audit_service.artifacts.bento_models import index_version_folder
from audit_service.config import AuditConfig
from audit_service.engine.client import Engine
from audit_service.monitoring.drift_baseline import BASELINE_FILE, DriftBaseline, read_baseline
from audit_service.monitoring.exposed_baseline import ExposedBaseline, watched_groups
from audit_service.monitoring.metrics import model_label
from audit_service.monitoring.model_metrics import (
    DropMetrics,
    ExplanationMetrics,
    InfluenceMetrics,
    OutcomeMetrics,
    PredictionMetrics,
)
from audit_service.monitoring.statistics import NearestCentre
from audit_service.serving.sampler import Sampler
from influence_engine.errors import InfluenceError
from influence_engine.index import Manifest
from influence_engine.index.manifest import MANIFEST
from influence_engine.tasks import Array

logger = logging.getLogger(__name__)


class ServiceMonitor:
    """Counts one service's predictions, explanations and outcomes. Recording never raises.

    Args:
        name: The name of the service's config, by which the engine is asked.
        config: The config.

    Attributes:
        model: The label ``model``.
        baseline: What the signals are held against; ``None`` where there is none, or one of another model or index.
        reason: Why there is no baseline.
    """

    def __init__(self, name: str, config: AuditConfig) -> None:
        self.name = name
        self.config = config
        self.model = model_label(config.name, None)
        self.baseline: DriftBaseline | None = None
        self.reason: str | None = None
        self._model_digest: str | None = None
        self._seen: tuple[Path, float | None] | None = None
        self._shown = ExposedBaseline()
        self._predictions: PredictionMetrics | None = None
        self._nearest: NearestCentre | None = None
        self._drops: DropMetrics | None = None
        self._sampler: Sampler | None = None
        self.explanations: ExplanationMetrics | None = None
        self.outcomes: OutcomeMetrics | None = None

    def start(self, model_digest: str, engine: Callable[[], Engine]) -> None:
        """Makes every series at zero and starts the sampling; call it in the process that serves.

        Args:
            model_digest: Digest of the model that predicts; empty where it is not known.
            engine: The engine, as this process reaches it.
        """
        settings = self.config.monitoring
        self._model_digest = model_digest or None
        self.model = model_label(self.config.name, self._model_digest)
        self._drops = DropMetrics(self.model)
        self.explanations = ExplanationMetrics(self.model)
        self._sampler = Sampler(
            self.name,
            rate=settings.sample_rate,
            waiting=settings.sample_queue,
            engine=engine,
            drops=self._drops,
            refresh=self.refresh,
        )
        self.refresh()
        self._sampler.start()

    def close(self) -> None:
        """Stops the sampling."""
        if self._sampler is not None:
            self._sampler.close()

    def refresh(self) -> None:
        """Looks whether another index is current or its baseline has been made; never raises."""
        try:
            self._refresh()
        except Exception:  # the watch goes on with what it has
            logger.exception("the baseline of %s could not be read", self.name)

    def _refresh(self) -> None:
        folder, changed = None, None
        try:
            folder = index_version_folder(self.config)
            file = folder / BASELINE_FILE
            changed = file.stat().st_mtime if file.is_file() else None
        except InfluenceError as error:  # no index, or it lies where another process holds it
            self.reason = error.message
        seen = (folder or Path(), changed)
        if seen == self._seen:
            return
        self._seen = seen
        self.baseline = None if folder is None else self._read(folder)
        labels = self._labels()
        clusters = len(self.baseline.centres) if self.baseline else 0
        self._shown.show(self.model, self.baseline)
        self._nearest = self.baseline.nearest_centre() if self.baseline else None
        self._predictions = PredictionMetrics(self.model, labels, clusters)
        self.outcomes = OutcomeMetrics(self.model, labels, self.config.monitoring.outcome_groups)
        if self._sampler is not None:
            columns = [one.by for one in self.baseline.influence] if self.baseline else ["label"]
            self._sampler.group_by = columns
            self._sampler.influence = InfluenceMetrics(self.model, watched_groups(self.baseline, labels))
            self._sampler.tier = self.baseline.tier if self.baseline else "best"  # type: ignore[assignment]

    def _read(self, folder: Path) -> DriftBaseline | None:
        try:
            index_digest = Manifest.read(folder / MANIFEST).build_digest
            found = read_baseline(folder, model_digest=self._model_digest, index_digest=index_digest)
        except InfluenceError as error:
            self.reason = error.message
            logger.error("%s has no baseline to hold its traffic against: %s", self.name, error.message)
            return None
        self.reason = (
            None if found else f"there is none; make it with: bento-audit reference build {self.config.spelled}"
        )
        return found

    def _labels(self) -> list[str]:
        """All labels that can be predicted, as far as anybody says: a label without a series falls out of sums."""
        return self.config.label_names() or (self.baseline.labels if self.baseline else [])

    def features(self, features: Array) -> None:
        """Counts the clusters of the features ``[B, width]`` of some predictions."""
        nearest, predictions = self._nearest, self._predictions
        if nearest is not None and predictions is not None and features.shape[-1] == nearest.width:
            predictions.clustered(nearest.of(features))

    def predicted(self, example: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
        """Counts one prediction, and explains it in the background if chance chooses it."""
        if self._predictions is not None:
            self._predictions.predicted(outputs.get("label"), outputs.get("confidence"))
        if self._sampler is not None:
            self._sampler.offer(example, outputs)

    def dropped(self, reason: str, count: int = 1) -> None:
        """Counts what was lost."""
        if self._drops is not None:
            self._drops.dropped(reason, count)

    def delayed(self) -> None:
        """Counts an attempt to write records that failed."""
        if self._drops is not None:
            self._drops.delayed()
