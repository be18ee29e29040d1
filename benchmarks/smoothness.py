"""How evenly a fine-tuning answers its examples, by settings: nonlinearity beside what the model has learnt.

    python benchmarks/smoothness.py --trainable lora --learning-rate 1e-3
    python benchmarks/smoothness.py --trainable lora --learning-rate 1e-3 --warmup 0.5
    python benchmarks/smoothness.py --trainable all --learning-rate 2e-2 --optimizer sgd --data tweets

MiniLM as in ``lds.py``, here on 400 snippets. Nonlinearity is ``|d(1) - 2 d(1/2)| / |d(1)|`` for the changes ``d`` of
64 held-out queries' log-odds without a random 5% of the examples, and with half their weight: 0 where a derivative
along the steps says all, a few tenths where exact replay begins to fail. Only settings that end at a like loss compare.
"""

from __future__ import annotations

import argparse

from support import machine, parser_of, show
from work import add_options, prepare

from influence_engine.evaluation import Removal, nonlinearity, random_removals


def parser() -> argparse.ArgumentParser:
    """The options."""
    found = parser_of(__doc__)
    add_options(found)
    found.set_defaults(examples=400, held_out=0, subsets=2, seed=5)
    return found


def main() -> None:
    """Measures and prints."""
    options = parser().parse_args()
    work = prepare(options)
    retraining = work.retraining()
    removals = random_removals([one["example_id"] for one in work.train], 0.05, options.subsets, seed=options.seed)
    halves = [Removal.of(one.example_ids, weight=0.5) for one in removals]
    recorded = retraining.recorded()
    whole, half = (retraining.measurements(sets) - recorded for sets in (removals, halves))
    found = {
        "machine": machine(),
        "settings": work.run.manifest["settings"],
        "validation": work.run.validation,
        "nonlinearity": [round(nonlinearity(*changes), 3) for changes in zip(whole, half, strict=True)],
        "change_of_log_odds": [round(float(one), 4) for one in whole.pow(2).mean(1).sqrt()],
    }
    show(found, options)


if __name__ == "__main__":
    main()
