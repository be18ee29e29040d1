"""LDS of the index and of simpler methods: MiniLM with two upper layers trained, 500 snippets with flipped labels.

    python benchmarks/lds.py                              40 retrainings at 5% (minutes), kept in state/lds-*
    python benchmarks/lds.py --fraction 0.05 --fraction 0.2 --single 20
    python benchmarks/lds.py --noise 0 --data amazon      other data
    python benchmarks/lds.py --trainable lora
    python benchmarks/lds.py --final --queries 24         one step at the final weights, estimated and refined
    python benchmarks/lds.py --adopted with-base          without a record, the base model known; also --final
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
from support import machine, parser_of, show
from work import CHECKED, add_options, prepare, shown

from influence_engine import Attributor, InfluenceIndex
from influence_engine.attribution.build_replay_basis import build_basis, measurement_directions
from influence_engine.evaluation import (
    EvaluationPlan,
    check_index,
    evaluate,
    linear_datamodeling_score,
    membership,
    random_removals,
)
from influence_engine.index import IndexSettings
from influence_engine.models.trainable import set_trainable
from influence_engine.replay import replay
from influence_engine.training.frozen_cache import FrozenCache

ALL: dict[str, Any] = {"coordinates": 262_144, "dimensions": 16_384, "dtype": "float32"}
"""An index with as much as its settings allow."""

DIRECTIONS = IndexSettings().hessian_directions


def parser() -> argparse.ArgumentParser:
    """The options."""
    found = parser_of(__doc__)
    add_options(found)
    found.add_argument("--afresh", action="store_true", help="also train again in new orders")
    found.add_argument("--exact", type=int, default=0, help="reported queries that are replayed exactly, one by one")
    found.add_argument("--single", type=int, default=0)
    found.add_argument("--final", action="store_true", help="an index of one step at the final weights, also refined")
    found.add_argument("--adopted", choices=("with-base", "alone"), help="an index that is given no record")
    found.add_argument("--uncompressed", action="store_true", help="an index with all coordinates that one may have")
    found.add_argument("--hessian-directions", type=int, default=DIRECTIONS, help="exact ones of the recorded steps")
    return found


def main() -> None:
    """Measures and prints."""
    options = parser().parse_args()

    work = prepare(options)
    run, task, train, queries, held_out = work.run, work.task, work.train, work.queries, work.held_out
    settings = IndexSettings(
        approximation="final" if options.final else "auto",
        hessian_directions=options.hessian_directions,
        **(ALL if options.uncompressed else {}),
    )
    exactly = "" if options.hessian_directions == DIRECTIONS else f"-hessians-{options.hessian_directions}"
    where = work.folder / ("index" + "-final" * options.final + "-uncompressed" * options.uncompressed + exactly)
    if options.adopted:
        model, where = run.load_model(), where.with_name(f"{where.name}-{options.adopted}")
        set_trainable(model, run.trainable)
        base = run.load_base() if options.adopted == "with-base" else None
        index = InfluenceIndex.build(model, task, train, where, settings, base=base, held_out=held_out[:CHECKED])
    else:
        index = InfluenceIndex.build_from_run(run, task, train, where, settings)
    stored = sum(file.stat().st_size for file in (index.folder / "examples.lance").rglob("*"))
    manifest = index.manifest
    report: dict[str, Any] = {
        "machine": machine(),
        "validation": run.validation,
        "metric": manifest.metric,
        "damping_source": manifest.damping_source,
        "coordinates": f"{manifest.dimensions} of {manifest.coordinates}",
        "bytes_an_example": round(stored / len(train)),
    }
    attributor = Attributor(run.load_model(), task, index)
    kept = FrozenCache()
    if options.directions and (index.basis is None or index.basis.width != options.directions):
        start = time.perf_counter()
        basis = build_basis(
            run, attributor, train, held_out[:-CHECKED], options.directions, frozen_cache=kept, progress=shown
        )
        report["directions"] = {
            "count": basis.width,
            "seconds": round(time.perf_counter() - start),
            "agreement": round(basis.agreement, 3),
            "damping": basis.damping,
        }
    # The last held-out snippets check the index; no direction comes from them.
    calibration = check_index(attributor, work.retraining(held_out[-CHECKED:]))
    report["nonlinearity"] = round(calibration.nonlinearity, 3)
    report["check"] = {tier: error.model_dump() for tier, error in calibration.tiers.items()}
    plan = EvaluationPlan(
        fractions=options.fraction or [0.05],
        subsets=options.subsets,
        kinds=("removal", "afresh") if options.afresh else ("removal",),
        single=options.single,
        refined=options.final and not options.adopted,
        seed=options.seed,
    )
    retraining = work.retraining()
    found = evaluate(attributor, retraining, plan, base=run.load_base(), progress=shown)
    report |= {"damping": found.damping, "damping_tuned": found.damping_tuned}
    report["methods"] = [
        {
            "method": row.method,
            "truth": row.kind,
            "removed": f"{row.fraction:.0%}",
            "LDS": f"{row.lds:.3f} [{row.low:.3f}, {row.high:.3f}]",
            "slope": None if row.slope is None else round(row.slope, 2),
            "within": None if row.coverage is None else f"{row.coverage:.0%}",
            "ms_a_query": round(row.ms_a_query, 1),
        }
        for row in found.rows
    ]
    if options.exact:
        chosen = slice(plan.tuning_of(len(queries)), plan.tuning_of(len(queries)) + options.exact)
        start = time.perf_counter()
        directions = measurement_directions(attributor, queries[chosen], torch.eye(options.exact), run.trainable)
        exact = replay(run, task, train, directions, keep_in=work.folder / "replays", frozen_cache=kept, progress=shown)
        report["exact_replay_s"] = round(time.perf_counter() - start)
        report["on_the_queries_replayed_exactly"] = []
        ids = index.example_ids
        for fraction in plan.fractions:
            removals = random_removals(ids, fraction, plan.subsets, seed=plan.seed)
            removed, measured = membership(removals, ids), retraining.measurements(removals)[:, chosen]
            for name, rows in (("exact replay", exact), ("estimated", attributor.scores(queries[chosen]))):
                score = linear_datamodeling_score(rows, removed, measured)
                agreement = float(torch.cosine_similarity(rows, exact, dim=1).mean())
                row = {"method": name, "removed": f"{fraction:.0%}", "LDS": str(score), "cosine": round(agreement, 3)}
                report["on_the_queries_replayed_exactly"].append(row)
    if found.single is not None:
        one = found.single
        report["one_at_a_time"] = {
            "rank_correlation": round(one.rank_correlation, 3),
            "signs_right": round(one.signs_right, 3),
            "slope": round(one.slope, 3),
        }
    show(report, options)
    (work.folder / "evaluation.json").write_text(json.dumps(found.to_dict()), encoding="utf-8")


if __name__ == "__main__":
    main()
