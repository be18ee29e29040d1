"""What the plugin costs a prediction: ``/predict`` with everything on against the same ONNX model served bare.

    python benchmarks/predict_overhead.py                     after `bento-audit demo`
    python benchmarks/predict_overhead.py --config FILE --requests 2000 --clients 1 --clients 4

The bare service is `benchmarks/services/bare.py`: BentoML, tokenizer and ONNX Runtime, nothing else. Ours has
``AuditMixin`` with recording, metrics, the drift baseline's clusters and the config's share of predictions explained in
the background by its engine. Both are up at once, and requests go to them in pairs of random order (`paired.py`): with
one client one request each, with several a block of all clients on one server, then on the other. Printed are medians
in milliseconds and their ratio with its 95% interval; beside them the processor time that all processes of a server
took for one request, recording and background explanations included. What was on is asked of ``/metrics`` afterwards:
a plugin that has not counted every prediction, or has lost a record, fails the benchmark.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from pathlib import Path
from urllib.request import urlopen

import psutil
from paired import Pair, Question, in_pairs, median_ms, ratio
from prometheus_client.parser import text_string_to_metric_families
from support import PROJECT, Server, machine, parser_of, serving, show

from audit_service.config import AuditConfig, load_config
from audit_service.workflows import drift_baseline
from influence_engine.data import load_examples

MUST_BE_AT_MOST = 1.10
WARM_UP = 50
EACH = 2
"""Requests of a client in a block."""

SERVERS = {
    "bare": Server("benchmarks.services.bare:Bare", ("/predict", b'{"text": "fine"}')),
    "plugin": Server("bentos.sentiment.service:Sentiment", ("/audit/explain", b'{"input": {"text": "fine"}}')),
}
COUNTED_WITHIN_S = 10.0
"""Clusters are counted and samples explained after the answer."""


def parser() -> argparse.ArgumentParser:
    """The options."""
    found = parser_of(__doc__)
    found.add_argument("--config", type=Path, default=PROJECT / "configs" / "sentiment.yaml")
    found.add_argument("--requests", type=int, default=1000, help="to each server, in each setting")
    found.add_argument("--clients", type=int, action="append", help="at once; may be given again; 1 and 8 if left out")
    return found


def main() -> None:
    """Measures and prints."""
    options = parser().parse_args()
    config = load_config(options.config)
    refuse_what_is_off(config)
    assert config.data.test is not None
    task = config.task_object(None)
    texts = [example["text"] for example in load_examples(config.data.test, task, config.root).examples]
    question = Question("/predict", [json.dumps({"text": text}).encode() for text in texts])
    path = options.config.absolute()
    report: dict[str, object] = {
        "machine": machine(),
        "must_be_at_most": MUST_BE_AT_MOST,
        "requests": options.requests,
        "share_explained_in_the_background": config.monitoring.sample_rate,
    }
    asked = WARM_UP
    with tempfile.TemporaryDirectory() as name, serving(SERVERS, path, Path(name)) as (ports, processes):
        servers = {one: psutil.Process(process.pid) for one, process in processes.items()}
        asyncio.run(in_pairs(ports, question, WARM_UP))
        for clients in options.clients or [1, 8]:
            each = 1 if clients == 1 else EACH
            count = max(2, options.requests // (clients * each))
            before = {one: processor_ms(process) for one, process in servers.items()}
            pairs = asyncio.run(in_pairs(ports, question, count, clients=clients, each=each, seed=clients))
            asked += count * clients * each
            processor = {one: processor_ms(process) - before[one] for one, process in servers.items()}
            report[f"{clients} client{'s' * (clients > 1)}"] = summary(pairs, processor, count * clients * each)
        report["of_the_plugin"] = counted(ports["plugin"], asked)
    show(report, options)


def refuse_what_is_off(config: AuditConfig) -> None:
    """Ends the benchmark where a part of the plugin would have nothing to do."""
    if drift_baseline.of_config(config) is None:
        raise SystemExit(f"there is no drift baseline; run: bento-audit reference build {config.spelled}")
    if not config.serve.keep_inputs_s or not config.monitoring.sample_rate:
        raise SystemExit(
            f"serve.keep_inputs is {config.serve.keep_inputs}, monitoring.sample_rate {config.monitoring.sample_rate}: "
            "everything is to be on, so name a time and a share above 0"
        )


def summary(pairs: list[Pair], processor: dict[str, float], requests: int) -> dict[str, object]:
    """Of one setting; ``processor`` holds the milliseconds of all ``requests`` by server."""
    return {
        "bare_ms": round(median_ms(pairs, "bare"), 3),
        "plugin_ms": round(median_ms(pairs, "plugin"), 3),
        "ratio": str(ratio(pairs, "plugin", "bare")),
        "processor_ms": {one: round(value / requests, 3) for one, value in processor.items()},
        "processor_ratio": round(processor["plugin"] / processor["bare"], 3),
    }


def processor_ms(process: psutil.Process) -> float:
    """Processor time so far of a server with all its processes."""
    times = [one.cpu_times() for one in (process, *process.children(recursive=True))]
    return sum(one.user + one.system for one in times) * 1000


def counted(port: int, asked: int) -> dict[str, float]:
    """What the plugin's metrics say of ``asked`` predictions; ends the benchmark where something was not done."""
    end = time.monotonic() + COUNTED_WITHIN_S
    while True:
        sums = metric_sums(port)
        found = {
            "predictions_counted": sums["audit_predictions_total"],
            "clusters_counted": sums["audit_embedding_cluster_total"],
            "explained_in_the_background": sums["audit_influence_top_share_ratio_count"],
            "lost": sums["audit_records_dropped_total"],
        }
        done = found["predictions_counted"] == found["clusters_counted"] == asked and not found["lost"]
        if done:
            return found
        if time.monotonic() > end:
            raise SystemExit(f"the plugin was asked for {asked} predictions, and its metrics say {found}")
        time.sleep(0.5)


def metric_sums(port: int) -> dict[str, float]:
    """Every series of ``/metrics``, summed over its labels."""
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    sums: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            sums[sample.name] = sums.get(sample.name, 0.0) + sample.value
    return sums


if __name__ == "__main__":
    main()
