"""Which ranking finds wrong labels? 500 movie snippets, every tenth label flipped, two upper layers of MiniLM trained.

    python benchmarks/planted_errors.py                       12 minutes; run, index and folds are kept in state/lds-*
    python benchmarks/planted_errors.py --learning-rate 2e-4
    python benchmarks/planted_errors.py --trainable all --learning-rate 4e-5 --data tweets --examples 400

The run of ``lds.py``, its options and its index. Training examples are ranked by the harm that they do to the
predictions of held-out snippets with right labels, by self-influence, by their training loss, and by how sure of their
label models are that were trained without them (five folds: the self-confidence that cleanlab ranks by). Prints how
many of the planted errors are among the first 5% and so on, the mean precision and the area under the ROC curve. 90%
intervals by bootstrap over the training examples.
"""

from __future__ import annotations

import argparse
from typing import Any

from support import machine, parser_of, show
from work import add_options, base_and_task, prepare, shown, training_snippets

from influence_engine.evaluation import find_planted_errors
from influence_engine.index import IndexSettings


def parser() -> argparse.ArgumentParser:
    """The options."""
    found = parser_of(__doc__)
    add_options(found)
    found.set_defaults(learning_rate=1e-4)
    found.add_argument("--folds", type=int, default=5)
    return found


def main() -> None:
    """Measures and prints."""
    options = parser().parse_args()
    work = prepare(options)
    held_out = [*work.queries, *work.held_out]
    found = find_planted_errors(
        work.task,
        base_and_task()[0],
        training_snippets(work.task, options),
        held_out,
        work.folder,
        share=options.noise,
        finetuning=work.run.settings,
        indexing=IndexSettings(),
        folds=options.folds,
        progress=shown,
    )
    rows: list[dict[str, Any]] = [
        {
            "ranked by": measure.replace("_", " "),
            **{name: f"{one.value:.3f} [{one.low:.3f}, {one.high:.3f}]" for name, one in each.items()},
        }
        for measure, each in found.figures.items()
    ]
    about = {"machine": machine(), "examples": found.examples, "planted": found.planted, "held_out": len(held_out)}
    show({**about, "validation": work.run.validation, "rankings": rows}, options)


if __name__ == "__main__":
    main()
