"""What recording costs: the same fine-tuning with a record and without, in turn, on the demo's base model and data.

    python benchmarks/finetune_overhead.py
    python benchmarks/finetune_overhead.py --trainable all --examples 500 --epochs 1

Prints the median of both and their quotient. Each pair is run back to back and the order alternates, so that a machine
that slows down slows both; the quotient is the median over the pairs. Both include loading, validation is left out.
On a machine that others use as well, the quotient of processor time says more than that of time.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from support import machine, parser_of, remark, show
from work import base_and_task, snippets

from influence_engine.training import FinetuneSettings, finetune


def parser() -> argparse.ArgumentParser:
    """The options."""
    found = parser_of(__doc__)
    found.add_argument("--examples", type=int, default=2000)
    found.add_argument("--epochs", type=int, default=2)
    found.add_argument("--trainable", default="2", help="'all', 'lora', or a number of upper layers")
    found.add_argument("--pairs", type=int, default=3)
    return found


def main() -> None:
    """Measures and prints."""
    options = parser().parse_args()

    base, task = base_and_task()
    train = snippets(task, "movies", options.examples, "train")
    trainable = int(options.trainable) if options.trainable.isdigit() else options.trainable
    settings = FinetuneSettings(trainable=trainable, epochs=options.epochs, learning_rate=3e-4)

    def measured(recorded: bool) -> tuple[float, float]:
        with tempfile.TemporaryDirectory() as folder:
            began, began_cpu = time.perf_counter(), time.process_time()
            if recorded:
                finetune(task, base, train, settings=settings, record_to=Path(folder) / "run")
            else:
                finetune(task, base, train, settings=settings)
            return time.perf_counter() - began, time.process_time() - began_cpu

    finetune(task, base, train[: settings.batch_size], settings=settings)
    with_record, without = [], []
    for number in range(options.pairs):
        for recorded in (True, False) if number % 2 else (False, True):
            (with_record if recorded else without).append(measured(recorded))
        remark(f"pair {number + 1}: recorded {with_record[-1][0]:.1f} s, without {without[-1][0]:.1f} s")
    pairs = list(zip(with_record, without, strict=True))
    result = {
        "machine": machine(),
        "recorded_s": round(statistics.median(seconds for seconds, _ in with_record), 2),
        "unrecorded_s": round(statistics.median(seconds for seconds, _ in without), 2),
        "quotient": round(statistics.median(one[0] / other[0] for one, other in pairs), 3),
        "processor_quotient": round(statistics.median(one[1] / other[1] for one, other in pairs), 3),
        "must_be_at_most": 1.10,
        "examples": len(train),
        "epochs": options.epochs,
        "trainable": trainable,
        "threads": torch.get_num_threads(),
    }
    show(result, options)


if __name__ == "__main__":
    main()
