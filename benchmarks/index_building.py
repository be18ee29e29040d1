"""How fast an index is built against plain training, and whether its memory grows with the examples.

    python benchmarks/index_building.py                                 1,000, 5,000 and 20,000 snippets
    python benchmarks/index_building.py --examples 2000 --followed      an index that follows the recorded steps
    python benchmarks/index_building.py --segments                      without a record, from the base model's weights
    python benchmarks/index_building.py --dimensions 512                as many numbers for each, however few
    python benchmarks/index_building.py --examples 1000000              mostly of halves of snippets; for a GPU

Two upper layers of MiniLM. Plain training is forward and backward over the same snippets in batches of like
length, 32 or 256 whichever is faster, without an optimiser, in the same process. Each size is built in a process of its
own, whose peak memory is compared with what it holds before it begins. ``indexing`` is the stage that every example
goes through; fitting the bases takes a sample, whatever the number of examples. ``operations_share`` is that stage's
matrix operations a second (a pass over the examples and their projections) against those of one large product.
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
from collections.abc import Sequence
from pathlib import Path

import torch
from floor import seconds, settle
from support import machine, parser_of, show
from torch.utils.flop_counter import FlopCounterMode
from work import base_and_task, snippets

from influence_engine import FinetuneSettings, IndexSettings, InfluenceIndex, Run, TextClassification, finetune
from influence_engine.index.building.pipeline import passes_for
from influence_engine.index.sizes import sample_sizes
from influence_engine.resources import choose_device, peak_memory, to_device
from influence_engine.tasks import Example, batches_of_like_size

TRAINED = 1_000
BATCHES = (32, 256)
INDEXING = "indexing the examples"
DOMAINS = ("movies", "news", "tweets", "amazon")


def parser() -> argparse.ArgumentParser:
    """The options."""
    found = parser_of(__doc__)
    found.add_argument("--examples", type=int, action="append")
    found.add_argument("--followed", action="store_true", help="fine-tune on the snippets, and follow the steps")
    found.add_argument("--segments", action="store_true", help="an index that is given the base model, and no record")
    found.add_argument("--dimensions", type=int, default=IndexSettings().dimensions)
    found.add_argument("--hessian-directions", type=int, default=IndexSettings().hessian_directions)
    found.add_argument("--run", help=argparse.SUPPRESS)
    return found


def main() -> None:
    """Measures and prints."""
    options = parser().parse_args()
    sizes = options.examples or [1_000, 5_000, 20_000]
    base, task = base_and_task()
    if options.run:
        settings = IndexSettings(
            approximation="auto" if options.followed else "segments" if options.segments else "final",
            dimensions=options.dimensions,
            hessian_directions=options.hessian_directions,
        )
        print(json.dumps(built(Run.open(options.run), task, mixed(task, sizes[0]), settings)))
        return
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            train = mixed(task, size if options.followed else TRAINED)
            settings = FinetuneSettings(trainable=2, epochs=1, batch_size=32, learning_rate=2e-4)
            run = finetune(task, base, train, settings=settings, record_to=Path(folder) / "run")
            command = [sys.executable, __file__, "--run", str(run.folder), "--examples", str(size)]
            command += ["--dimensions", str(options.dimensions), *["--followed"] * options.followed]
            command += ["--segments"] * options.segments
            command += ["--hessian-directions", str(options.hessian_directions)]
            found = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        show({"machine": machine(), **json.loads(found.splitlines()[-1])}, options)


def mixed(task: TextClassification, count: int) -> list[Example]:
    """So many snippets, movies first; where there are no more, the first half of one before the second of another."""
    found: list[Example] = []
    for domain in DOMAINS:
        if len(found) < count:
            found += snippets(task, domain, count - len(found))
    there = len(found)
    for number in range(there, count):
        first, second = found[number % there], found[(number + number // there) % there]
        words, others = str(first["text"]).split(), str(second["text"]).split()
        text = " ".join(words[: len(words) // 2] + others[len(others) // 2 :])
        found.append({**second, "example_id": f"joined-{number}", "text": text})
    return found


def built(run: Run, task: TextClassification, examples: list[Example], settings: IndexSettings) -> dict[str, object]:
    """Rates and memory of one build."""
    model = run.load_model().to(choose_device()).eval()
    before = resident()
    started: dict[str, float] = {}
    ended: dict[str, float] = {}

    def watch(stage: str, done: int, total: int, note: str = "") -> None:
        started.setdefault(stage, time.perf_counter())
        ended[stage] = time.perf_counter()

    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder) / "index"
        if settings.approximation == "auto":
            InfluenceIndex.build_from_run(run, task, examples, where, settings, progress=watch)
        else:
            base = run.load_base() if settings.approximation == "segments" else None
            InfluenceIndex.build(model, task, examples, where, settings, base=base, progress=watch)
    taken = time.perf_counter() - begin
    peak = peak_memory()  # before plain training, whose batches may take more
    plain = max(plain_rate(model, task, examples[:2_000], size) for size in BATCHES)
    in_stage = ended[INDEXING] - started[INDEXING]
    indexed = (
        len(examples)
        - sample_sizes(settings.sample, len(examples), along_trajectory=settings.approximation != "final")[0]
    )
    final = settings.model_copy(update={"approximation": "final"})
    operations = operations_each(model, task, examples[:: max(1, len(examples) // 512)], final)
    operations += 2 * settings.coordinates * min(settings.dimensions, len(examples))  # into the basis
    return {
        "examples": len(examples),
        "dimensions": settings.dimensions,
        "plain_training_per_s": round(plain, 1),
        "whole_build_per_s": round(len(examples) / taken, 1),
        "whole_build_ratio": round(len(examples) / taken / plain, 3),
        "indexing_ratio": round(indexed / in_stage / plain, 3) if indexed else None,
        "operations_each": f"{operations:.3g}",
        "operations_share": round(indexed / in_stage * operations / product_rate(), 3) if indexed else None,
        "seconds": {stage: round(ended[stage] - started[stage], 1) for stage in started} | {"all": round(taken, 1)},
        "memory_before_mb": round(before / 2**20),
        "peak_gpu_mb": round(torch.cuda.max_memory_allocated() / 2**20) if torch.cuda.is_available() else None,
        "peak_memory_mb": round(peak / 2**20),
    }


def plain_rate(model: torch.nn.Module, task: TextClassification, examples: Sequence[Example], size: int) -> float:
    """Examples a second of forward and backward passes, in batches of ``size`` of like length."""
    batches = [[examples[place] for place in places] for places in batches_of_like_size(task, examples, size)]
    device = next(model.parameters()).device
    settle()
    start = time.perf_counter()
    for batch in batches:
        collated = to_device(task.collate(batch), device)
        task.loss(task.outputs(model, collated), collated).mean().backward()
        model.zero_grad()
    settle()
    return len(examples) / (time.perf_counter() - start)


def operations_each(
    model: torch.nn.Module, task: TextClassification, examples: list[Example], settings: IndexSettings
) -> float:
    """Floating-point operations of an example's passes and of its projection to the layers' coordinates."""
    with tempfile.TemporaryDirectory() as folder:
        index = InfluenceIndex.build(model, task, examples, Path(folder) / "index", settings)
        passes = passes_for(model, task, settings)
        with FlopCounterMode(display=False) as counter:
            for _, batch in passes.grouped(examples, range(len(examples))):
                index.encoder.coordinates(passes.loss_gradients(batch))
    return counter.get_total_flops() / len(examples)


def product_rate() -> float:
    """Operations a second of one large matrix product in single precision."""
    width = 1024 if choose_device().type == "cpu" else 8192
    one = torch.randn(width, width, device=choose_device())
    return 2 * width**3 / statistics.median(seconds(lambda: one @ one, 9)[2:])


def resident() -> int:
    """Bytes of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


if __name__ == "__main__":
    main()
