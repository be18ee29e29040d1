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
import contextlib
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

from audit_service.config import load_config
from influence_engine.data import load_examples

PROJECT = Path(__file__).resolve().parents[1]
MUST_BE_AT_MOST = 1.10
START_S = 120.0
TARGETS = {"bare": "benchmarks.services.bare:Bare", "plugin": "bentos.sentiment.service:Sentiment"}


class Connection:
    """One keep-alive HTTP/1.1 connection; far cheaper than the server, so that the client is not what is measured."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def open(cls, port: int) -> Connection:
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def post(self, path: str, body: bytes) -> float:
        """Milliseconds until the whole answer was there."""
        head = (
            f"POST {path} HTTP/1.1\r\nHost: b\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        start = time.perf_counter()
        self.writer.write(head.encode() + body)
        answer = await self.reader.readuntil(b"\r\n\r\n")
        length = next(
            int(line.partition(b":")[2])
            for line in answer.split(b"\r\n")
            if line.lower().startswith(b"content-length:")
        )
        await self.reader.readexactly(length)
        elapsed = (time.perf_counter() - start) * 1000
        assert answer.startswith(b"HTTP/1.1 200"), answer
        return elapsed


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


@contextlib.contextmanager
def serving(config: Path, folder: Path) -> Iterator[tuple[dict[str, int], dict[str, psutil.Process]]]:
    """Both servers; ports and processes by name."""
    processes: list[subprocess.Popen[bytes]] = []
    ports: dict[str, int] = {}
    try:
        for name, target in TARGETS.items():
            ports[name] = free_port()
            environment = {
                **os.environ,
                "BENTOML_DO_NOT_TRACK": "True",
                "BENTOML_HOME": str(folder / name),
                "BENTO_AUDIT_CONFIG": str(config),
                "BENTO_AUDIT_STATE": str(folder / "state"),
                "PYTHONPATH": str(PROJECT),
            }
            command = [
                sys.executable,
                "-m",
                "bentoml",
                "serve",
                target,
                "--host",
                "127.0.0.1",
                "--port",
                str(ports[name]),
            ]
            log = (folder / f"{name}.log").open("wb")
            processes.append(
                subprocess.Popen(
                    command, cwd=PROJECT, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
                )
            )
        asyncio.run(_wait_until_ready(ports, folder))
        yield ports, dict(zip(ports, (psutil.Process(process.pid) for process in processes), strict=True))
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        for process in processes:
            process.wait(30)


async def _wait_until_ready(ports: dict[str, int], folder: Path) -> None:
    end = time.monotonic() + START_S
    paths = {"bare": ("/predict", b'{"text": "fine"}'), "plugin": ("/audit/index", b"{}")}
    for name, port in ports.items():
        while True:
            try:
                connection = await Connection.open(port)
                await connection.post(*paths[name])
                break
            except (OSError, AssertionError, asyncio.IncompleteReadError, StopIteration):
                if time.monotonic() > end:
                    log = (folder / f"{name}.log").read_text()
                    raise SystemExit(f"{name} is not ready after {START_S:g} s:\n{log}") from None
                await asyncio.sleep(0.5)
    await asyncio.sleep(10)  # until the engine has loaded and nothing but the servers runs


def processor_ms(process: psutil.Process) -> float:
    """Processor time so far of a server with all its processes."""
    times = [one.cpu_times() for one in (process, *process.children(recursive=True))]
    return sum(one.user + one.system for one in times) * 1000


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=PROJECT / "configs" / "sentiment.yaml")
    parser.add_argument("--requests", type=int, default=1000, help="to each server, in each setting")
    parser.add_argument("--clients", type=int, default=8)
    options = parser.parse_args()

    config = load_config(options.config)
    assert config.data.test is not None
    task = config.task_object(None)
    texts = [example["text"] for example in load_examples(config.data.test, task, config.root).examples]
    bodies = [json.dumps({"text": text}).encode() for text in texts]
    with tempfile.TemporaryDirectory() as name, serving(options.config.absolute(), Path(name)) as (ports, servers):
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
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
