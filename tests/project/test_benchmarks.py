"""Every benchmark starts, has its place in `make bench`, and takes the options that it is run with there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
SCRIPTS = sorted(path.stem for path in BENCHMARKS.glob("*.py") if "__main__" in path.read_text(encoding="utf-8"))

# All in one process of their own: torch is imported once, and the names of their modules are nobody else's.
IN_ONE_PROCESS = """
import contextlib, io, json, runpy, sys
sys.path.insert(0, sys.argv[1])
found = {"help": {}, "refused": {}}
parsers = {}
for name in sys.argv[2:]:
    try:
        parsers[name] = runpy.run_path(f"{sys.argv[1]}/{name}.py")["parser"]()
        found["help"][name] = parsers[name].format_help()
    except Exception as error:
        found["help"][name] = repr(error)
import bench
for run in bench.RUNS:
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            parsers[run.script or run.name].parse_args([*run.command[1:], "--json"])
    except BaseException as error:
        found["refused"][run.name] = f"{error!r} {said.getvalue()}"
found["scripts"] = sorted({run.script or run.name for run in bench.RUNS})
found["names"] = [run.name for run in bench.RUNS]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    command = [sys.executable, "-c", IN_ONE_PROCESS, str(BENCHMARKS), *SCRIPTS]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert finished.returncode == 0, finished.stderr
    answer: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    return answer


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_benchmark_can_be_imported_and_says_how_it_is_used(found: dict[str, Any], name: str) -> None:
    said = found["help"][name]
    assert said.startswith("usage:"), said
    assert f"python benchmarks/{name}.py" in said
    assert "--json" in said


def test_make_bench_runs_every_benchmark_with_options_that_it_takes(found: dict[str, Any]) -> None:
    assert found["scripts"] == [name for name in SCRIPTS if name != "bench"]
    assert found["refused"] == {}
    assert len(set(found["names"])) == len(found["names"])


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / "bench.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_before_it_starts_the_runner_says_what_it_runs_and_how_long_that_takes() -> None:
    said = bench("--list", "--only", "lds-full", "--only", "query").stdout
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in said.splitlines()]

    assert lines[0] == ["benchmark", "minutes, roughly", "command"]
    assert [line[0] for line in lines[2:]] == ["query", "lds-full", "all"]
    assert int(lines[-1][1]) == sum(int(line[1]) for line in lines[2:-1])
    assert lines[3][2].startswith("python benchmarks/lds.py --trainable all")
    assert "the demo's model" in bench("--list", "--only", "predict").stdout


def test_a_name_that_no_benchmark_has_is_refused_with_those_there_are() -> None:
    finished = bench("--only", "nothing")
    assert finished.returncode == 2
    assert "lds-movies" in finished.stderr


# Two servers that note what they are asked, and pairs of which one half took 1.1 times the other, long or short.
PAIRED = """
import asyncio, json, sys
sys.path.insert(0, sys.argv[1])
from paired import Question, in_pairs, ratio

async def main():
    seen, busy, ports, servers = {"one": [], "other": []}, set(), {}, []
    def answering(name):
        async def answer(reader, writer):
            while head := await reader.readuntil(b"\\r\\n\\r\\n"):
                length = int(head.lower().partition(b"content-length: ")[2].split()[0])
                seen[name].append((await reader.readexactly(length)).decode())
                busy.add(name)
                assert len(busy) == 1, "both were asked at once"
                await asyncio.sleep(0.001)
                writer.write(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\n{}")
                busy.discard(name)
        return answer
    for name in seen:
        servers.append(await asyncio.start_server(answering(name), "127.0.0.1", 0))
        ports[name] = servers[-1].sockets[0].getsockname()[1]
    question = Question("/predict", [b"0", b"1", b"2", b"3", b"4"])
    pairs = await in_pairs(ports, question, 6, clients=2, each=3)
    return seen, [[len(pair["one"]), len(pair["other"])] for pair in pairs], [list(pair)[0] for pair in pairs]

seen, counts, first = asyncio.run(main())
found = ratio([{"one": [1.1 * ms], "other": [ms]} for ms in (1.0, 5.0, 20.0, 3.0)], "one", "other")
uneven = ratio([{"one": [ms], "other": [1.0]} for ms in (0.9, 1.0, 1.1, 1.2, 1.3)], "one", "other")
print(json.dumps([seen, counts, first, [found.value, found.low, found.high], [uneven.value, uneven.low, uneven.high]]))
"""


def test_both_servers_of_a_pair_get_the_same_requests_one_after_the_other_and_the_ratio_is_theirs() -> None:
    command = [sys.executable, "-c", PAIRED, str(BENCHMARKS)]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert finished.returncode == 0, finished.stderr
    seen, counts, first, constant, uneven = json.loads(finished.stdout.splitlines()[-1])

    assert sorted(seen["one"]) == sorted(seen["other"])
    assert counts == [[6, 6]] * 6
    assert set(first) == {"one", "other"}, "which is first is drawn"
    assert constant == [1.1, 1.1, 1.1]
    assert uneven[1] < uneven[0] == 1.1 < uneven[2]
