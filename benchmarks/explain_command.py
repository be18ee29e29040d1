"""How long `bento-audit explain sentiment --text ...` takes as a command, in the demo's project.

    python benchmarks/explain_command.py                               this checkout
    python benchmarks/explain_command.py --against ../earlier          in turn with an earlier one, and how they compare

Every command is a process of its own, from its start to its end; the files are in memory and packages are compiled by a
first call that does not count. Processor time tells more than the clock where something else runs beside it. With an
earlier checkout the two run in turn, in another order each time, and their answers are compared but for their timings.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from support import PROJECT, machine, parser_of, remark, show

TEXT = "a slow start, but what an ending"
COMMAND = "import sys; from audit_service.cli import main; sys.argv[0] = 'bento-audit'; main()"


def parser() -> argparse.ArgumentParser:
    found = parser_of(__doc__)
    found.add_argument("--pairs", type=int, default=5, help="calls of each checkout that count")
    found.add_argument("--against", type=Path, help="folder of an earlier checkout, of which only the code is used")
    found.add_argument("--project", type=Path, default=PROJECT, help="folder with configs, runs and index")
    return found


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Medians by checkout and, of two, of their ratios pair by pair."""
    codes = {"now": PROJECT, **({} if options.against is None else {"before": options.against.resolve()})}
    answers = {name: call(code, options.project)[2] for name, code in codes.items()}
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in codes}
    for number in range(options.pairs):
        for name in list(codes)[:: 1 if number % 2 else -1]:
            seconds, processor, _ = call(codes[name], options.project)
            taken[name].append((seconds, processor))
            remark(f"{name}: {seconds:.2f} s, {processor:.2f} s of processor time")
    report: dict[str, Any] = {"machine": machine(), "calls": options.pairs, "load": list(os.getloadavg())}
    for name, calls in taken.items():
        report[name] = {"seconds": median(calls, 0), "processor seconds": median(calls, 1)}
    if "before" in taken:
        pairs = list(zip(taken["now"], taken["before"], strict=True))
        report["now/before"] = {
            "seconds": statistics.median(now[0] / before[0] for now, before in pairs),
            "processor seconds": statistics.median(now[1] / before[1] for now, before in pairs),
        }
        report["same answer"] = answers["now"] == answers["before"]
    return report


def median(calls: Sequence[tuple[float, float]], place: int) -> float:
    return statistics.median(call[place] for call in calls)


def call(code: Path, project: Path) -> tuple[float, float, dict[str, Any]]:
    """One command: its seconds, its processor's seconds, its answer without what is of that call alone."""
    environment = {**os.environ, "PYTHONPATH": str(code), "BENTOML_DO_NOT_TRACK": "True"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    command = [sys.executable, "-P", "-c", COMMAND, "explain", "sentiment", "--text", TEXT, "--json"]
    with tempfile.TemporaryFile() as out:
        actions = [(os.POSIX_SPAWN_DUP2, out.fileno(), 1), (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0)]
        here = Path.cwd()
        os.chdir(project)
        try:
            start = time.perf_counter()
            process = os.posix_spawn(sys.executable, command, environment, file_actions=actions)
        finally:
            os.chdir(here)
        _, status, used = os.wait4(process, 0)
        seconds = time.perf_counter() - start
        if status:
            raise SystemExit(f"explain failed in {project}; `bento-audit demo sentiment` makes what it needs")
        out.seek(0)
        answer: dict[str, Any] = json.load(out)
    answer.pop("timings_ms")
    return seconds, used.ru_utime + used.ru_stime, answer


if __name__ == "__main__":
    asked = parser().parse_args()
    show(measure(asked), asked)
