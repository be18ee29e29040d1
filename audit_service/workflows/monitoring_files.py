"""Renders files for Prometheus and Grafana: rules, alerts and dashboards of some configs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from audit_service.config import AuditConfig
from audit_service.monitoring import rules
from audit_service.workflows import drift_baseline


@dataclass(frozen=True)
class RenderedRules:
    """Rendered rules of some configs.

    Attributes:
        text: The YAML.
        groups: The rule groups that it holds.
        series: Label ``model`` -> series that a replica adds at most.
        without_baseline: Names of the configs that have no drift baseline, and so no drift alerts.
    """

    text: str
    groups: list[dict[str, Any]]
    series: dict[str, int]
    without_baseline: list[str]

    def write(self, file: Path) -> None:
        """Writes the YAML, in a folder that is made where it is missing."""
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(self.text, encoding="utf-8")


def render_rules(configs: Sequence[AuditConfig], format: rules.Format) -> RenderedRules:
    """Recording rules for every model, and drift alerts for those of the configs that have a baseline.

    Args:
        configs: At least one; windows and links are those of the first.
        format: ``prometheus`` for a file of rules, ``prometheus-operator`` for a ``PrometheusRule``.

    Raises:
        RecordError: a config has no index, or its baseline is damaged.
        DigestMismatchError: a baseline belongs to another index.
    """
    found = {config.name: drift_baseline.of_config(config) for config in configs}
    baselines = [baseline for baseline in found.values() if baseline is not None]
    settings = configs[0].monitoring
    return RenderedRules(
        text=rules.render(baselines, settings, format=format),
        groups=rules.rule_groups(baselines, settings),
        series={one.model: rules.series_of(one, outcome_groups=settings.outcome_groups) for one in baselines},
        without_baseline=[name for name, baseline in found.items() if baseline is None],
    )


def write_dashboards(documents: Mapping[str, Any], folder: Path) -> list[Path]:
    """Writes every dashboard to a file that is named by its uid; returns the files.

    Args:
        documents: As ``monitoring.dashboards.render_all`` returns them.
        folder: Made where it is missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for uid, document in documents.items():
        files.append(folder / f"{uid}.json")
        files[-1].write_text(json.dumps(document, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return files
