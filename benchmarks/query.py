"""What a query costs without a server: the attributor against its floor, at 10,000 and at 100,000 examples.

    python benchmarks/query.py                        fine-tunes and indexes 2,000 snippets first (minutes)
    python benchmarks/query.py --examples 10000
    python benchmarks/query.py --examples 1000000     where a GPU has 5 GB for it

``floor(N)`` = forward pass + backward pass over activations of the same texts, + one read of the index's resident bytes
at the bandwidth measured here. The search does not look at what it searches: the index of 2,000 real snippets is
repeated until it has as many rows as asked for, under ids of their own.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from floor import Passes, bandwidth, medians, seconds
from support import PROJECT, machine, parser_of, show
from torch import Tensor
from work import base_and_task, snippets

from influence_engine import (
    Attributor,
    FinetuneSettings,
    IndexSettings,
    InfluenceIndex,
    Run,
    finetune,
)
from influence_engine.index.building.pipeline import ENCODER, MANIFEST, TABLE
from influence_engine.index.manifest import Manifest
from influence_engine.index.store import ExampleTable, write_table
from influence_engine.tasks import Example

SNIPPETS = 2_000


def parser() -> argparse.ArgumentParser:
    """The options."""
    found = parser_of(__doc__)
    found.add_argument("--examples", type=int, action="append")
    found.add_argument("--queries", type=int, default=200)
    return found


def main() -> None:
    """Measures and prints."""
    options = parser().parse_args()
    base, task = base_and_task()
    train, texts = snippets(task, "movies", SNIPPETS), snippets(task, "amazon", options.queries)
    folder = PROJECT / "state" / "query"
    settings = FinetuneSettings(trainable=2, epochs=1, learning_rate=2e-4)
    run = finetune(task, base, train, settings=settings, record_to=folder / "run", reuse=True)
    opened = Run.open(run.folder)
    small = InfluenceIndex.build_from_run(opened, task, train, folder / "index", IndexSettings(approximation="final"))
    passes = Passes(opened)
    for examples in options.examples or [10_000, 100_000]:
        with tempfile.TemporaryDirectory() as name:
            index = repeated(small, examples, Path(name))
            attributor = Attributor(opened.load_model(), task, index)
            taken, alone = [], []
            for one in texts:  # one after the other, so that a slow moment of the machine meets both
                taken.append(timed(attributor, [{"text": one["text"]}]))
                alone.append(passes.ms(str(one["text"])))
            forward, backward = medians(alone)
            read = index.resident_bytes / bandwidth() * 1000
            search = share_of_bandwidth(index)
        floor = forward + backward + read
        measured = statistics.median(total for total, _ in taken)
        laps = {lap: round(statistics.median(laps[lap] for _, laps in taken), 2) for lap in taken[0][1]}
        report = {
            "machine": machine(),
            "examples": examples,
            "query_ms": round(measured, 2),
            "floor_ms": round(floor, 2),
            "of_which": {"forward": round(forward, 2), "backward": round(backward, 2), "index_read": round(read, 2)},
            "quotient": round(measured / floor, 3),
            "must_be_at_most": 1.5,
            "timings_ms": laps,
            "search_share_of_bandwidth": round(search, 2),
            "index_mb": round(index.resident_bytes / 2**20),
        }
        show(report, options)


def repeated(index: InfluenceIndex, examples: int, folder: Path) -> InfluenceIndex:
    """An index of as many rows: those of ``index`` again and again."""
    table = ExampleTable(index.folder / TABLE)
    vectors, described = table.vectors(), table.take(range(len(index)))
    own = torch.tensor(table.column("self_influence"))

    def blocks() -> Iterator[tuple[Sequence[Example], Tensor, Tensor]]:
        for start in range(0, examples, len(index)):
            count = min(len(index), examples - start)
            named = [
                {**described[row]["fields"], "label": described[row]["label"], "example_id": f"{start}-{row}"}
                for row in range(count)
            ]
            yield named, vectors[:count], own[:count]

    version = folder / "versions" / "repeated"
    version.mkdir(parents=True)
    content = write_table(
        version / TABLE,
        blocks(),
        group=lambda one: one["label"],
        weight=-1.0 / examples,
        dimensions=index.manifest.dimensions,
        dtype="float16",
    )
    shutil.copyfile(index.folder / ENCODER, version / ENCODER)
    manifest: Manifest = index.manifest.model_copy(update={"rows": examples, "content_digest": content})
    manifest.write(version / MANIFEST)
    (folder / "CURRENT").write_text("repeated\n", encoding="utf-8")
    return InfluenceIndex.open(folder)


def share_of_bandwidth(index: InfluenceIndex) -> float:
    """How near the products with all vectors come to reading them once at the bandwidth of the machine."""
    query = torch.randn(1, index.manifest.dimensions, device=index.device)
    taken = statistics.median(seconds(lambda: index.scores(query), 30)[5:])
    return len(index) * index.manifest.dimensions * 2 / taken / bandwidth()


def timed(attributor: Attributor, query: list[Example]) -> tuple[float, dict[str, float]]:
    """Milliseconds of one explanation, and of its parts."""
    start = time.perf_counter()
    (found,) = attributor.attribute(query)
    return (time.perf_counter() - start) * 1000, found.timings_ms


if __name__ == "__main__":
    main()
