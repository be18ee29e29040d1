"""What a measured job in the background costs predictions and explanations that are asked meanwhile.

    python benchmarks/job_latency.py                     after `bento-audit demo`, or finetune and index build
    python benchmarks/job_latency.py --config FILE --requests 300

One server, one client: requests to /predict and /audit/explain alternate, in blocks without a job, with one that
trains, and without one again. Prints medians and 95th percentiles in milliseconds, and how much longer they were with
the job. Other work on the machine disturbs this: the two blocks without a job say how much.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from pathlib import Path

from support import PROJECT, Connection, Server, machine, parser_of, serving, show

from audit_service.config import load_config
from influence_engine.data import load_examples

SERVERS = {"plugin": Server("bentos.sentiment.service:Sentiment", ("/audit/explain", b'{"input": {"text": "fine"}}'))}
TRAINING = ("control: the recorded steps as they are", "training with the change")
BEGINS_WITHIN_S = 300.0


async def block(connection: Connection, texts: list[str], requests: int) -> dict[str, list[float]]:
    """Predictions and explanations in turn."""
    times: dict[str, list[float]] = {"predict": [], "explain": []}
    for number in range(requests):
        text = texts[number % len(texts)]
        times["predict"].append(await connection.post("/predict", json.dumps({"text": text}).encode()))
        question = {"input": {"text": text}, "top_k": 10}
        times["explain"].append(await connection.post("/audit/explain", json.dumps(question).encode()))
    return times


async def job_that_trains(port: int, text: str) -> str:
    """Submits a job; returns once it trains."""
    connection = await Connection.open(port)
    question = {"input": {"text": text}, "without": {"top_k": 10}}
    head = (
        b"POST /audit/jobs/submit HTTP/1.1\r\nHost: b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    )
    body = json.dumps(question).encode()
    connection.writer.write(head % len(body) + body)
    answer = await connection.reader.readuntil(b"\r\n\r\n")
    length = next(int(one.partition(b":")[2]) for one in answer.split(b"\r\n") if one.lower().startswith(b"content-l"))
    job_id: str = json.loads(await connection.reader.readexactly(length))["job_id"]
    end = time.monotonic() + BEGINS_WITHIN_S
    while (await stage(connection, job_id)) not in TRAINING:
        if time.monotonic() > end:
            raise SystemExit(f"the job did not train within {BEGINS_WITHIN_S:g} s")
        await asyncio.sleep(0.5)
    return job_id


async def stage(connection: Connection, job_id: str) -> str | None:
    """What the job does just now."""
    status = json.loads(await connection.answer("/audit/jobs/status", json.dumps({"job_id": job_id}).encode()))
    return status.get("progress", {}).get("stage") if status["state"] in ("queued", "running") else status["state"]


async def measure(port: int, texts: list[str], requests: int) -> dict[str, object]:
    """The three blocks."""
    connection = await Connection.open(port)
    await block(connection, texts, 20)
    blocks = {"before": await block(connection, texts, requests)}
    job_id = await job_that_trains(port, texts[0])
    connection = await Connection.open(port)  # the server has closed the idle one
    blocks["with a job"] = await block(connection, texts, requests)
    still = await stage(connection, job_id)
    await connection.answer("/audit/jobs/cancel", json.dumps({"job_id": job_id}).encode())
    await asyncio.sleep(3)
    connection = await Connection.open(port)
    blocks["after"] = await block(connection, texts, requests)
    report: dict[str, object] = {"the job still trained at the end": still in TRAINING}
    for what in ("predict", "explain"):
        medians = {name: statistics.median(times[what]) for name, times in blocks.items()}
        p95 = {name: statistics.quantiles(times[what], n=20)[-1] for name, times in blocks.items()}
        without = (medians["before"] + medians["after"]) / 2
        report[what] = {
            "median_ms": {name: round(value, 2) for name, value in medians.items()},
            "p95_ms": {name: round(value, 2) for name, value in p95.items()},
            "quotient": round(medians["with a job"] / without, 3),
        }
    return report


def parser() -> argparse.ArgumentParser:
    """The options."""
    found = parser_of(__doc__)
    found.add_argument("--config", type=Path, default=PROJECT / "configs" / "sentiment.yaml")
    found.add_argument("--requests", type=int, default=200, help="of each kind, in each block")
    return found


def main() -> None:
    """Measures and prints."""
    options = parser().parse_args()
    config = load_config(options.config)
    assert config.data.test is not None
    texts = [one["text"] for one in load_examples(config.data.test, config.task_object(None), config.root).examples]
    path = options.config.absolute()
    with tempfile.TemporaryDirectory() as name, serving(SERVERS, path, Path(name)) as (ports, _):
        found = asyncio.run(measure(ports["plugin"], texts, options.requests))
    show({"machine": machine(), "requests": options.requests, **found}, options)


if __name__ == "__main__":
    main()
