"""Shared by the benchmarks: options and tables, servers, a client that costs next to nothing, the machine in words."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[1]
START_S = 300.0
"""Until a server has to answer; on a machine with much else to do, its first import takes minutes."""


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """A benchmark's parser, to add its options to; ``--json`` is there."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    return parser


def show(report: Mapping[str, Any], options: argparse.Namespace) -> None:
    """Prints what was found, as the options want it.

    In tables, nested reports are lines of the first one, and what is a list of rows is a table of its own.
    """
    if options.json:
        print(json.dumps(report, indent=2, default=float), flush=True)
        return
    print(table([{"what": name, "got": value} for name, value in _lines(report)]))
    for name, rows in report.items():
        if _is_rows(rows):
            print(f"\n{name.replace('_', ' ')}:\n\n{table(rows)}")
    print(flush=True)


def remark(text: str) -> None:
    """Says something that is no result."""
    print(text, file=sys.stderr, flush=True)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """In Markdown, the columns padded to one width; they are those of all rows, as they first come."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[name.replace("_", " ") for name in columns]]
    cells += [[_text(row.get(name)) for name in columns] for row in rows]
    widths = [max(3, *(len(line[place]) for line in cells)) for place in range(len(columns))]
    cells.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in cells
    )


def _lines(report: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in report.items():
        spelled = prefix + str(name).replace("_", " ")
        if isinstance(value, Mapping):
            yield from _lines(value, f"{spelled}: ")
        elif not _is_rows(value):
            yield spelled, value


def _is_rows(value: object) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], Mapping)


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value))
    return f"{value:.6g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


class Connection:
    """One keep-alive HTTP/1.1 connection; far cheaper than the server, so that the client is not what is measured."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def open(cls, port: int) -> Connection:
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def post(self, path: str, body: bytes) -> float:
        """Milliseconds until the whole answer was there."""
        start = time.perf_counter()
        await self.answer(path, body)
        return (time.perf_counter() - start) * 1000

    async def answer(self, path: str, body: bytes, *, status: int = 200) -> bytes:
        """The body of an answer with that status."""
        head = (
            f"POST {path} HTTP/1.1\r\nHost: b\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        self.writer.write(head.encode() + body)
        answer = await self.reader.readuntil(b"\r\n\r\n")
        length = next(
            int(line.partition(b":")[2])
            for line in answer.split(b"\r\n")
            if line.lower().startswith(b"content-length:")
        )
        content = await self.reader.readexactly(length)
        assert answer.startswith(b"HTTP/1.1 %d" % status), answer + content
        return content


@dataclass(frozen=True)
class Server:
    """A BentoML server to start.

    Attributes:
        target: What ``bentoml serve`` takes.
        ready: Path and body of a request that is answered once all is loaded.
        code: The folder whose code is served.
        environment: What else it finds in its environment.
    """

    target: str
    ready: tuple[str, bytes]
    code: Path = PROJECT
    environment: Mapping[str, str] = field(default_factory=dict)

    def start(self, port: int, config: Path, folder: Path, log: Path) -> subprocess.Popen[bytes]:
        """Starts it, with what it writes below ``folder``."""
        environment = {
            **os.environ,
            "BENTOML_DO_NOT_TRACK": "True",
            "BENTOML_HOME": str(folder / "bentoml"),
            "BENTO_AUDIT_CONFIG": str(config),
            "BENTO_AUDIT_STATE": str(folder / "state"),
            "PYTHONPATH": str(self.code),
            **self.environment,
        }
        command = [sys.executable, "-m", "bentoml", "serve", self.target, "--host", "127.0.0.1", "--port", str(port)]
        with log.open("wb") as output:
            return subprocess.Popen(
                command,
                cwd=self.code,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )


@contextlib.contextmanager
def serving(
    servers: Mapping[str, Server], config: Path, folder: Path
) -> Iterator[tuple[dict[str, int], dict[str, subprocess.Popen[bytes]]]]:
    """Starts servers and waits until each answers; yields ports and processes by name."""
    # A terminated benchmark stops its servers, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    processes: dict[str, subprocess.Popen[bytes]] = {}
    ports: dict[str, int] = {}
    try:
        for name, server in servers.items():
            ports[name] = free_port()
            processes[name] = server.start(ports[name], config, folder / name, folder / f"{name}.log")
        asyncio.run(_wait_until_ready(ports, servers, folder))
        yield ports, processes
    finally:
        for process in processes.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        for process in processes.values():
            process.wait(30)


async def _wait_until_ready(ports: Mapping[str, int], servers: Mapping[str, Server], folder: Path) -> None:
    end = time.monotonic() + START_S
    for name, port in ports.items():
        while True:
            try:
                connection = await Connection.open(port)
                await connection.post(*servers[name].ready)
                break
            except (OSError, AssertionError, asyncio.IncompleteReadError, StopIteration):
                if time.monotonic() > end:
                    log = (folder / f"{name}.log").read_text()
                    raise SystemExit(f"{name} is not ready after {START_S:g} s:\n{log}") from None
                await asyncio.sleep(0.5)
    await asyncio.sleep(2)  # until nothing but the servers runs


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def machine() -> str:
    """Processor, cores, GPU where there is one, and Python, for a table of results."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model)
    import torch  # here, not above: `bench.py --list` does not wait for it

    gpu = f", one {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{model}, {os.cpu_count()} cores{gpu}, Python {platform.python_version()}"
