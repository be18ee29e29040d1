"""LDS of the index and of simpler methods: MiniLM with two upper layers trained, 500 snippets with flipped labels.

    python benchmarks/lds.py                              40 retrainings at 5% (minutes), kept in state/lds-*
    python benchmarks/lds.py --fraction 0.05 --fraction 0.2 --single 20
    python benchmarks/lds.py --noise 0 --data amazon      other data
    python benchmarks/lds.py --trainable lora
    python benchmarks/lds.py --final --queries 24         as for a model without a record, estimated and refined
    python benchmarks/lds.py --noise 0.3 / --rare 0.05    noise and imbalance
    python benchmarks/lds.py --hessian-directions 0       an index of Gauss-Newton matrices alone (16: closer)
    python benchmarks/lds.py --uncompressed               an index that keeps 16 times the coordinates, in float32

Truth: the recorded steps executed without random 5% of the examples. 48 held-out queries are reported, 16 others choose
the damping of the row that says so.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import torch
from support import machine
from work import add_options, prepare, shown

from influence_engine import Attributor, InfluenceIndex
from influence_engine.basis import build_basis, measurement_directions
from influence_engine.evaluation import (
    EvaluationPlan,
    check_index,
    evaluate,
    linear_datamodeling_score,
    membership,
    random_removals,
)
from influence_engine.index import IndexSettings
from influence_engine.replay import replay
from influence_engine.training.frozen import KeptSteps

ALL: dict[str, Any] = {"coordinates": 262_144, "dimensions": 16_384, "dtype": "float32"}
"""An index with as much as its settings allow."""

DIRECTIONS = IndexSettings().hessian_directions

CHECKED = 64
"""Held-out snippets that the index's intervals come from."""


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--afresh", action="store_true", help="also train again in new orders")
    parser.add_argument("--exact", type=int, default=0, help="reported queries that are replayed exactly, one by one")
    parser.add_argument("--single", type=int, default=0)
    parser.add_argument("--final", action="store_true", help="an index as of a model without a record, also refined")
    parser.add_argument("--uncompressed", action="store_true", help="an index with all coordinates that one may have")
    parser.add_argument("--hessian-directions", type=int, default=DIRECTIONS, help="exact ones of the recorded steps")
    options = parser.parse_args()

    work = prepare(options)
    run, task, train, queries, held_out = work.run, work.task, work.train, work.queries, work.held_out
    settings = IndexSettings(
        approximation="final" if options.final else "auto",
        hessian_directions=options.hessian_directions,
        **(ALL if options.uncompressed else {}),
    )
    exactly = "" if options.hessian_directions == DIRECTIONS else f"-hessians-{options.hessian_directions}"
    where = work.folder / ("index" + "-final" * options.final + "-uncompressed" * options.uncompressed + exactly)
    index = InfluenceIndex.build_from_run(run, task, train, where, settings)
    stored = sum(file.stat().st_size for file in (index.folder / "examples.lance").rglob("*"))
    manifest = index.manifest
    print(f"{manifest.dimensions} of {manifest.coordinates} coordinates, {stored / len(train):,.0f} bytes an example")
    attributor = Attributor(run.load_model(), task, index)
    kept = KeptSteps()
    if options.directions and (index.basis is None or index.basis.width != options.directions):
        start = time.perf_counter()
        basis = build_basis(run, attributor, train, held_out[:-CHECKED], options.directions, kept=kept, progress=shown)
        taken = time.perf_counter() - start
        print(
            f"{basis.width} directions in {taken:.0f} s, agreement {basis.agreement:.3f}, damping {basis.damping:.3g}"
        )
    # The last held-out snippets check the index; no direction comes from them.
    calibration = check_index(attributor, work.retraining(held_out[-CHECKED:]))
    print(f"nonlinearity {calibration.nonlinearity:.3f}; {calibration.tiers}")
    plan = EvaluationPlan(
        fractions=options.fraction or [0.05],
        subsets=options.subsets,
        kinds=("removal", "afresh") if options.afresh else ("removal",),
        single=options.single,
        refined=options.final,
        seed=options.seed,
    )
    retraining = work.retraining()
    found = evaluate(attributor, retraining, plan, base=run.load_base(), progress=shown)
    print(f"{machine()}; accuracy {run.validation}; damping {found.damping:.3g}, tuned {found.damping_tuned}")
    for row in found.rows:
        print(
            f"{row.kind} {row.fraction:4.0%} {row.lds:6.3f} [{row.low:.3f}, {row.high:.3f}] "
            f"{row.ms_a_query:7.1f} ms  {row.method}"
            + (
                ""
                if row.slope is None
                else f" (slope {row.slope:.2f}"
                + (")" if row.coverage is None else f", within the index's intervals {row.coverage:.0%})")
            )
        )
    if options.exact:
        chosen = slice(plan.tuning_of(len(queries)), plan.tuning_of(len(queries)) + options.exact)
        start = time.perf_counter()
        directions = measurement_directions(attributor, queries[chosen], torch.eye(options.exact), run.trainable)
        exact = replay(run, task, train, directions, keep_in=work.folder / "replays", kept=kept, progress=shown)
        print(f"{options.exact} queries replayed in {time.perf_counter() - start:.0f} s")
        ids = index.example_ids
        for fraction in plan.fractions:
            removals = random_removals(ids, fraction, plan.subsets, seed=plan.seed)
            removed, measured = membership(removals, ids), retraining.measurements(removals)[:, chosen]
            for name, rows in (("exact replay", exact), ("estimated", attributor.scores(queries[chosen]))):
                score = linear_datamodeling_score(rows, removed, measured)
                agreement = float(torch.cosine_similarity(rows, exact, dim=1).mean())
                print(f"{fraction:4.0%} {score} on these queries, cosine with exact replay {agreement:.3f}: {name}")
    if found.single is not None:
        one = found.single
        print(f"one at a time: rank {one.rank_correlation:.3f}, signs {one.signs_right:.3f}, slope {one.slope:.3f}")
    (work.folder / "evaluation.json").write_text(json.dumps(found.to_dict()), encoding="utf-8")


if __name__ == "__main__":
    main()
