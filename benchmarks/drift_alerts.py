"""Do the alerts stay silent on baseline traffic, and fire on shifted traffic? On the demo's model, with the rules.

    python benchmarks/drift_alerts.py            after `bento-audit demo`, or finetune, index build, reference build
    python benchmarks/drift_alerts.py --config FILE --runs 20

Every input is predicted by the exported model and explained by the index, as a server does. `promtool test rules` then
plays the counters of 500 events through the rendered rules, ten a minute over two replicas; with --every 5, every fifth
is explained. Baseline: bootstrap runs of held-out movie snippets that neither training nor the baseline saw. Shifted:
tweets, Amazon reviews, newspaper snippets. Prints for each whether an alert fired, and after how many events.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from support import PROJECT, machine, parser_of, show

from audit_service.artifacts.onnx_models import open_predictor
from audit_service.config import AuditConfig, load_config
from audit_service.drift.signals import FeatureCatcher, explain_all, group_bins, group_events, predict_all
from audit_service.engine.loading import load
from audit_service.monitoring.drift_baseline import DriftBaseline
from audit_service.monitoring.metrics import CONFIDENCE_BUCKETS, bound
from audit_service.monitoring.promql import quoted
from audit_service.monitoring.rules import render
from audit_service.monitoring.values import clean
from audit_service.workflows import drift_baseline
from audit_service.workspace import Workspace
from influence_engine.data import DataSettings, load_examples

EVENTS, PER_MINUTE = 500, 10
CHECKPOINTS = tuple(range(100, EVENTS + 1, 50))
DOMAINS = ("tweets", "amazon", "news")


@dataclass(frozen=True)
class Traffic:
    """Events in order.

    Attributes:
        labels: Predicted labels.
        confidences: Their probabilities.
        clusters: Numbers of the nearest clusters.
        shares: For each event what its explanation adds to the bins of the influence signals, ``[events, bins]``.
        outside: Whether its input lies outside the index.
    """

    labels: list[Any]
    confidences: list[Any]
    clusters: list[int]
    shares: np.ndarray
    outside: np.ndarray

    def take(self, rows: Sequence[int]) -> Traffic:
        """Some of the events."""
        return Traffic(
            [self.labels[i] for i in rows],
            [self.confidences[i] for i in rows],
            [self.clusters[i] for i in rows],
            self.shares[list(rows)],
            self.outside[list(rows)],
        )

    def __len__(self) -> int:
        return len(self.labels)


def bins_of(baseline: DriftBaseline) -> list[str]:
    """The bins of all influence signals."""
    return [bin_ for one in baseline.influence for bin_ in one.shares]


class Observer:
    """Turns inputs into events, as a server counts them."""

    def __init__(self, config: AuditConfig, baseline: DriftBaseline) -> None:
        self.config, self.baseline = config, baseline
        self.loaded = load(Workspace(config))
        self.catcher = FeatureCatcher()
        self.predictor = open_predictor(config, self.catcher)
        self.nearest = baseline.nearest_centre()

    def traffic(self, examples: Sequence[Any]) -> Traffic:
        """The events of some inputs."""
        self.catcher.caught.clear()
        predicted = predict_all(self.predictor, self.catcher, examples)
        columns = [one.by for one in self.baseline.influence]
        explained, _ = explain_all(self.loaded.attributor, examples, tier="best", group_by=columns)
        events = [
            group_events(explained, one.by, group_bins(list(dict.fromkeys(b.rpartition("/")[0] for b in one.shares))))
            for one in self.baseline.influence
        ]
        assert self.nearest is not None
        assert predicted.features is not None
        return Traffic(
            predicted.labels,
            predicted.confidences,
            self.nearest.of(predicted.features),
            np.concatenate(events, 1),
            np.array([bool(one) for one in explained.outside]),
        )

    def packaged(self, domain: str, part: str | None, limit: int) -> list[Any]:
        """Real sentences."""
        settings = {"packaged": f"vader/{domain}", "part": part, "limit": limit, "seed": 11}
        chosen = DataSettings.model_validate({key: value for key, value in settings.items() if value is not None})
        return load_examples(chosen, self.loaded.task, self.config.root).examples


def input_series(baseline: DriftBaseline, traffic: Traffic, every: int) -> list[dict[str, str]]:
    """The counters of two replicas over time, as promtool reads them: one value a minute, the first all zero."""
    minutes = -(-len(traffic) // PER_MINUTE)
    rows: list[dict[str, str]] = [
        {
            "series": f"audit_reference_share_ratio{{model={quoted(baseline.model)},signal={quoted(signal)},"
            f"bin={quoted(clean(bin_))}}}",
            "values": f"{share!r}x{minutes + 1}",
        }
        for signal, bin_, share in baseline.bins()
    ]

    def counter(name: str, per_event: np.ndarray, **labels: str) -> None:
        for replica in (0, 1):
            mine = np.where(np.arange(len(traffic)) % 2 == replica, per_event, 0.0)
            ends = np.minimum(np.arange(minutes + 1) * PER_MINUTE, len(traffic))
            values = np.concatenate([[0.0], np.cumsum(mine)])[ends]
            chosen = ",".join(
                f"{key}={quoted(value)}"
                for key, value in {"model": baseline.model, "instance": str(replica), **labels}.items()
            )
            rows.append({"series": f"{name}{{{chosen}}}", "values": " ".join(f"{value:.9g}" for value in values)})

    for label in baseline.labels:
        counter("audit_predictions_total", np.array([one == label for one in traffic.labels]), label=label)
    confidences = np.array(traffic.confidences, dtype=float)
    for upper in CONFIDENCE_BUCKETS:
        counter("audit_prediction_confidence_ratio_bucket", confidences <= upper, le=bound(upper))
    counter("audit_prediction_confidence_ratio_count", np.ones(len(traffic)))
    for number in range(len(baseline.centres)):
        counter("audit_embedding_cluster_total", np.array(traffic.clusters) == number, cluster=str(number))
    # Replicas take turns, so as many events are explained on each of them.
    explained = (np.arange(len(traffic)) // 2) % every == 0
    for column, bin_ in enumerate(bins_of(baseline)):
        group, _, polarity = bin_.rpartition("/")
        counter(
            "audit_influence_share_total",
            np.where(explained, traffic.shares[:, column], 0),
            group=group,
            polarity=polarity,
        )
    counter("audit_influence_top_share_ratio_count", explained)
    counter("audit_queries_outside_index_total", explained & traffic.outside)
    return rows


def first_alert(
    baseline: DriftBaseline, config: AuditConfig, traffic: Traffic, alert: str, signal: str = ".+", *, every: int
) -> int | None:
    """After how many events an alert of that name, on that signal, fires; ``None`` where it never does."""
    expression = f'count(ALERTS{{alertname=~"{alert}", alertstate="firing", signal=~"{signal}"}})'
    checkpoints = [one for one in CHECKPOINTS if one <= len(traffic)]
    test = {
        "interval": "1m",
        "input_series": input_series(baseline, traffic, every),
        "promql_expr_test": [
            {"expr": expression, "eval_time": f"{one // PER_MINUTE}m", "exp_samples": []} for one in checkpoints
        ],
    }
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "rules.yml").write_text(render([baseline], config.monitoring), encoding="utf-8")
        document = {"rule_files": ["rules.yml"], "evaluation_interval": "1m", "tests": [test]}
        (Path(folder) / "tests.yml").write_text(yaml.safe_dump(document, allow_unicode=True, width=100_000))
        finished = subprocess.run(
            ["promtool", "test", "rules", f"{folder}/tests.yml"], capture_output=True, text=True, check=False
        )
    if finished.returncode == 0:
        return None
    # What is said of a check that found something: "expr: ..., time: 20m, exp: nil, got: ...".
    said = finished.stdout + finished.stderr
    minutes = [int(one) for one in re.findall(r"time: (\d+)m", said)]
    if not minutes:
        raise SystemExit(f"promtool did not run the test:\n{said[-3000:]}")
    return min(minutes) * PER_MINUTE


def parser() -> argparse.ArgumentParser:
    """The options."""
    found = parser_of(__doc__)
    found.add_argument("--config", type=Path, default=PROJECT / "configs" / "sentiment.yaml")
    found.add_argument("--runs", type=int, default=20, help="bootstrap runs of baseline traffic")
    found.add_argument("--every", type=int, default=1, help="explain every so many events")
    return found


def main() -> None:
    """Measures and prints."""
    options = parser().parse_args()
    config = load_config(options.config)
    baseline = drift_baseline.of_config(config)
    if baseline is None:
        raise SystemExit(f"there is no baseline; run: bento-audit reference build {config.spelled}")
    observer = Observer(config, baseline)
    seen = set()
    if config.data.test is not None:
        seen = {one["text"] for one in load_examples(config.data.test, observer.loaded.task, config.root).examples}
    quiet = observer.traffic([one for one in observer.packaged("movies", "test", 1_000) if one["text"] not in seen])
    report: dict[str, Any] = {
        "machine": machine(),
        "explained": f"every {options.every}",
        "quiet_events": len(quiet),
        "outside_quiet": quiet.outside.mean(),
    }
    random = np.random.default_rng(5)
    alarms = 0
    for _ in range(options.runs):
        run = quiet.take(random.choice(len(quiet), EVENTS).tolist())
        alarms += first_alert(baseline, config, run, "Audit.*Drift", every=options.every) is not None
    report["quiet_runs"] = options.runs
    report["quiet_runs_with_an_alert"] = alarms
    for domain in DOMAINS:
        shifted = observer.traffic(observer.packaged(domain, None, EVENTS))
        report[domain] = {
            "events": len(shifted),
            "outside_index": round(float(shifted.outside.mean()), 3),
            "AuditPredictionDrift after": first_alert(
                baseline, config, shifted, "AuditPredictionDrift", every=options.every
            ),
            "AuditInfluenceDrift after": first_alert(
                baseline, config, shifted, "AuditInfluenceDrift", every=options.every
            ),
        }
    show(report, options)


if __name__ == "__main__":
    main()
