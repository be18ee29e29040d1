"""What replaying costs: many directions together against one at a time, and memory against its prediction.

    python benchmarks/replay_cost.py                     32 directions, two upper layers of MiniLM, 256 snippets
    python benchmarks/replay_cost.py --trainable lora --directions 8

Single replays are timed three times and counted 32 times; all of them run in a process of their own, so that the peak
memory is theirs alone. A replayed query is compared with an estimated one on the same index.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from support import PROJECT, machine, parser_of, show
from work import base_and_task, snippets

from influence_engine import (
    Attributor,
    FinetuneSettings,
    IndexSettings,
    InfluenceIndex,
    Run,
    TextClassification,
    finetune,
)
from influence_engine.attribution.build_replay_basis import build_basis
from influence_engine.data import DataSettings, load_examples
from influence_engine.replay import plan_replay, replay

SINGLES = 3


def parser() -> argparse.ArgumentParser:
    """The options."""
    found = parser_of(__doc__)
    found.add_argument("--trainable", default="2")
    found.add_argument("--examples", type=int, default=256)
    found.add_argument("--directions", type=int, default=32)
    found.add_argument("--run", help=argparse.SUPPRESS)
    return found


def main() -> None:
    """Measures and prints."""
    options = parser().parse_args()
    base, task = base_and_task()
    train = snippets(task, "movies", options.examples, "train")
    if options.run:
        print(json.dumps(_replayed(Run.open(options.run), task, train, options.directions)))
        return
    with tempfile.TemporaryDirectory() as folder:
        trainable = int(options.trainable) if options.trainable.isdigit() else options.trainable
        settings = FinetuneSettings(trainable=trainable, epochs=2, batch_size=32, learning_rate=1e-4)
        run = finetune(task, base, train, settings=settings, record_to=Path(folder) / "run")
        again = [sys.executable, __file__, "--run", str(run.folder), "--examples", str(options.examples)]

        def measured(directions: int) -> dict[str, float]:
            found = subprocess.run(
                [*again, "--directions", str(directions)], check=True, capture_output=True, text=True
            )
            return dict(json.loads(found.stdout.splitlines()[-1]))

        single = statistics.median(measured(1)["seconds"] for _ in range(SINGLES))
        together = measured(options.directions)
        ratio = together["seconds"] / (options.directions * single)
        used, planned = together["memory_bytes"], together["planned_bytes"]
        report = {
            "machine": machine(),
            "directions": options.directions,
            "together_s": round(together["seconds"], 1),
            "predicted_s": round(together["planned_seconds"]),
            "one_s": round(single, 1),
            "of_as_many_single_ones": round(ratio, 2),
            "peak_memory_mb": round(used / 1e6),
            "predicted_memory_mb": round(planned / 1e6),
            "prediction_off_by": f"{planned / used - 1:+.0%}",
            **_queries(run, task, train, Path(folder)),
        }
    show(report, options)


def _replayed(run: Run, task: TextClassification, train: list[dict[str, object]], directions: int) -> dict[str, float]:
    generator = torch.Generator().manual_seed(0)
    plan = plan_replay(run, task, train, directions)
    wanted = {
        name: torch.randn(directions, *tensor.shape, generator=generator)
        for name, tensor in run.checkpoint(0)[0].items()
    }
    # Predicted is what comes on top of what is in use; the directions themselves are handed in.
    handed = sum(tensor.nbytes for tensor in wanted.values())
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() - handed
    start = time.perf_counter()
    replay(run, task, train, wanted)
    seconds = time.perf_counter() - start
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return {
        "seconds": seconds,
        "planned_seconds": plan.seconds,
        "memory_bytes": int(peak.split()[1]) * 1024 - before,
        "planned_bytes": plan.memory_bytes,
    }


def _queries(run: Run, task: TextClassification, train: list[dict[str, object]], folder: Path) -> dict[str, float]:
    index = InfluenceIndex.build_from_run(run, task, train, folder / "index", IndexSettings())
    attributor = Attributor(run.load_model(), task, index)
    asked = DataSettings(packaged="vader/movies", part="test", limit=64)
    held_out = load_examples(asked, task, PROJECT).examples
    build_basis(run, attributor, train, held_out, 8)
    taken: dict[str, list[float]] = {"estimated": [], "replayed": []}
    for query in held_out * 4:
        for tier, seconds in taken.items():
            start = time.perf_counter()
            attributor.attribute([query], tier=tier)  # type: ignore[arg-type]
            seconds.append(time.perf_counter() - start)
    estimated, replayed = (1000 * statistics.median(seconds) for seconds in taken.values())
    return {
        "replayed_query_ms": round(replayed, 1),
        "estimated_query_ms": round(estimated, 1),
        "quotient": round(replayed / estimated, 3),
    }


if __name__ == "__main__":
    main()
