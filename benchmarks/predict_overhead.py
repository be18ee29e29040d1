"""What the plugin costs a prediction: ``/predict`` of the sentiment bento against the same ONNX model served bare.

    python benchmarks/predict_overhead.py                     after `bento-audit demo`, or finetune and index build
    python benchmarks/predict_overhead.py --config FILE --requests 2000

Both servers run at once, the engine of ours included. Alone: one connection to each, and every request to one is
followed by the same request to the other. With clients: blocks of all clients on one server alternate with blocks on
the other. Prints medians in milliseconds and their quotient; beside them the processor time that all processes of a
server took for one request, which other work on the machine disturbs less.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

import psutil
from support import PROJECT, Connection, parser_of, serving, show

from audit_service.config import load_config
from influence_engine.data import load_examples

MUST_BE_AT_MOST = 1.10
TARGETS = {"bare": "benchmarks.services.bare:Bare", "plugin": "bentos.sentiment.service:Sentiment"}
READY = {"bare": ("/predict", b'{"text": "fine"}'), "plugin": ("/audit/explain", b'{"input": {"text": "fine"}}')}


async def alone(ports: dict[str, int], bodies: Sequence[bytes], requests: int) -> dict[str, list[float]]:
    """Every request to one server is followed by the same one to the other; who is first alternates."""
    connections = {name: await Connection.open(port) for name, port in ports.items()}
    times: dict[str, list[float]] = {name: [] for name in ports}
    for number in range(requests):
        order = list(connections) if number % 2 else list(reversed(connections))
        for name in order:
            times[name].append(await connections[name].post("/predict", bodies[number % len(bodies)]))
    return times


async def crowded(
    ports: dict[str, int], bodies: Sequence[bytes], requests: int, clients: int
) -> dict[str, list[float]]:
    """Blocks of ``clients`` connections on one server, then on the other."""
    times: dict[str, list[float]] = {name: [] for name in ports}
    block = 25

    async def one_client(name: str, connection: Connection, start: int) -> None:
        for step in range(block):
            times[name].append(await connection.post("/predict", bodies[(start + step) % len(bodies)]))

    for round_number in range(max(2, requests // (block * clients))):
        order = list(ports) if round_number % 2 else list(reversed(ports))
        for name in order:
            # Opened anew for each block: servers close what is idle while the other one's block runs.
            connections = [await Connection.open(ports[name]) for _ in range(clients)]
            starts = range(round_number, len(bodies) * clients, block)
            await asyncio.gather(*(one_client(name, *pair) for pair in zip(connections, starts, strict=False)))
            for connection in connections:
                connection.writer.close()
    return times


def processor_ms(process: psutil.Process) -> float:
    """Processor time so far of a server with all its processes."""
    times = [one.cpu_times() for one in (process, *process.children(recursive=True))]
    return sum(one.user + one.system for one in times) * 1000


def parser() -> argparse.ArgumentParser:
    """The options."""
    found = parser_of(__doc__)
    found.add_argument("--config", type=Path, default=PROJECT / "configs" / "sentiment.yaml")
    found.add_argument("--requests", type=int, default=1000, help="to each server, in each setting")
    found.add_argument("--clients", type=int, default=8)
    return found


def main() -> None:
    """Measures and prints."""
    options = parser().parse_args()

    config = load_config(options.config)
    assert config.data.test is not None
    task = config.task_object(None)
    texts = [example["text"] for example in load_examples(config.data.test, task, config.root).examples]
    bodies = [json.dumps({"text": text}).encode() for text in texts]
    path = options.config.absolute()
    with tempfile.TemporaryDirectory() as name, serving(TARGETS, READY, path, Path(name)) as (ports, processes):
        servers = {one: psutil.Process(process.pid) for one, process in zip(ports, processes, strict=True)}
        asyncio.run(alone(ports, bodies, 50))
        asyncio.run(crowded(ports, bodies, 100, options.clients))
        results, processor = {}, {}
        for setting, measure in {
            "alone": lambda: alone(ports, bodies, options.requests),
            f"{options.clients} clients": lambda: crowded(ports, bodies, options.requests, options.clients),
        }.items():
            before = {one: processor_ms(process) for one, process in servers.items()}
            results[setting] = asyncio.run(measure())
            processor[setting] = {
                one: (processor_ms(process) - before[one]) / len(results[setting][one])
                for one, process in servers.items()
            }
    report: dict[str, object] = {"must_be_at_most": MUST_BE_AT_MOST, "requests": options.requests}
    for setting, times in results.items():
        medians = {name: statistics.median(values) for name, values in times.items()}
        report[setting] = {
            "bare_ms": round(medians["bare"], 3),
            "plugin_ms": round(medians["plugin"], 3),
            "quotient": round(medians["plugin"] / medians["bare"], 3),
            "processor_ms": {one: round(value, 3) for one, value in processor[setting].items()},
            "processor_quotient": round(processor[setting]["plugin"] / processor[setting]["bare"], 3),
        }
    show(report, options)


if __name__ == "__main__":
    main()
