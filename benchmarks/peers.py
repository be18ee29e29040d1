"""Competing packages on the same fine-tuned model, examples, queries and retrainings as ``lds.py``, in one table.

    python -m pip install --no-deps --target build/peers -r benchmarks/peers/requirements.txt     as `make bench` does
    python benchmarks/peers.py                             all of them; what is done is kept in state/lds-*
    python benchmarks/peers.py --directions 16             also ours with a replay basis
    python benchmarks/peers.py --only TRAK --only DVEmb    some of them
    python benchmarks/peers.py --examples 64 --epochs 1 --subsets 8 --queries 8 --held-out 80     does it run?

Licences: Kronfluence Apache-2.0, TRAK (traker) MIT, dattri MIT, Captum BSD-3-Clause. None is a dependency of this
project, and no line of them is in it. They are installed without their own dependencies: those would replace torch by
a CUDA build (torchvision, which none of the modules used here imports). And they have a folder of their own, for some
bring packages called ``tests`` and ``docs``.

Every method is held to the same protocol: the first quarter of the queries chooses its damping, regularisation or the
like among a few values by LDS, the others are reported; its default is reported, too. Seconds are by the clock, and
in brackets of the processor, which says more where other work ran beside. A package that is not there or fails is a
row with the reason. Delete ``state/lds-*/peers`` to measure again.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import shutil
import sys
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from peers import ours, with_captum, with_dattri, with_kronfluence, with_trak
from peers.common import Candidate, Material, Method, Scored, Seconds
from safetensors import safe_open
from support import PROJECT, machine, parser_of, remark, show
from torch import Tensor
from work import Work, add_options, prepare

from influence_engine.digests import json_digest
from influence_engine.evaluation import (
    EvaluationPlan,
    linear_datamodeling_score,
    membership,
    random_removals,
    rank_agreement,
)
from influence_engine.tensor_files import write_tensors


@dataclass(frozen=True)
class Row:
    """One line of the table; ``lds`` is None where ``note`` says why there is none."""

    method: str
    lds: float | None = None
    low: float | None = None
    high: float | None = None
    prepare_s: float | None = None
    prepare_processor_s: float | None = None
    ms_a_query: float | None = None
    processor_ms_a_query: float | None = None
    bytes_an_example: float | None = None
    bytes_once: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Truth:
    """Retrainings, and which queries choose among a method's settings."""

    removed: Tensor
    measured: Tensor
    tuning: int

    def chosen(self, candidates: list[Candidate]) -> Candidate:
        """The best on the first queries."""
        first = self.measured[:, : self.tuning]
        return max(candidates, key=lambda one: rank_agreement(one.influences[: self.tuning], self.removed, first))

    def row(self, method: Method, scored: Scored, one: Candidate, how: str) -> Row:
        """The score on the queries that chose nothing."""
        score = linear_datamodeling_score(one.influences[self.tuning :], self.removed, self.measured[:, self.tuning :])
        count = len(one.influences)
        return Row(
            ": ".join(filter(None, (_title(method), one.setting))) + how,
            score.mean,
            score.low,
            score.high,
            scored.prepare.wall,
            scored.prepare.processor,
            1000 * scored.answer.wall / count,
            1000 * scored.answer.processor / count,
            scored.bytes_an_example,
            scored.bytes_once,
            scored.note,
        )


def scored(method: Method, material: Material) -> Scored:
    """Runs a method, or reads what it said before."""
    work = material.work
    about = {
        "files": work.run.manifest["files"],
        "queries": json_digest([dict(query) for query in work.queries]),
        "method": _title(method),
        "settings": json.loads(json.dumps(dict(method.settings))),
    }
    path = work.folder / "peers" / f"{json_digest(about)[:16]}.safetensors"
    if path.exists():
        return _read(path)
    folder = path.with_suffix("")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    found = method.compute(material, folder)
    facts = {
        "settings": [[one.setting, one.default] for one in found.candidates],
        "prepare": vars(found.prepare),
        "answer": vars(found.answer),
        "bytes": [found.bytes_an_example, found.bytes_once],
        "note": found.note,
        "about": about,
    }
    tensors = {str(number): one.influences for number, one in enumerate(found.candidates)}
    write_tensors(path, tensors, {"facts": json.dumps(facts)})
    shutil.rmtree(folder)
    return found


def _read(path: Path) -> Scored:
    with safe_open(path, "pt") as file:
        facts: dict[str, Any] = json.loads(file.metadata()["facts"])
        candidates = [
            Candidate(setting, file.get_tensor(str(number)), default)
            for number, (setting, default) in enumerate(facts["settings"])
        ]
    each, once = facts["bytes"]
    return Scored(candidates, Seconds(**facts["prepare"]), Seconds(**facts["answer"]), each, once, facts["note"])


def attempted(method: Method, material: Material) -> Scored | str:
    """What it says; or in words why it says nothing."""
    try:
        if method.package is not None:
            importlib.metadata.version(method.package)
        return scored(method, material)
    except importlib.metadata.PackageNotFoundError:
        return "not installed: see --help"
    except Exception as error:
        traceback.print_exc()
        return f"failed: {type(error).__name__}: {' '.join(str(error).split())}"


def rows_of(method: Method, found: Scored | str, truth: Truth) -> list[Row]:
    """Its default and what the first queries chose; or why there is neither."""
    if isinstance(found, str):
        return [Row(_title(method), note=found)]
    best = truth.chosen(found.candidates)
    if len(found.candidates) == 1:
        return [truth.row(method, found, best, "")]
    rows = [truth.row(method, found, best, ", chosen by other queries")]
    return rows + [truth.row(method, found, one, "") for one in found.candidates if one.default and one is not best]


def _title(method: Method) -> str:
    if method.package is None:
        return method.name
    try:
        return f"{method.package} {importlib.metadata.version(method.package)} {method.name}"
    except importlib.metadata.PackageNotFoundError:
        return f"{method.package} {method.name}"


def shown_rows(rows: list[Row]) -> list[dict[str, Any]]:
    """As they are printed, the best first."""
    return [
        {"method": row.method, "LDS": "-", "notes": row.note}
        if row.lds is None
        else {
            "method": row.method,
            "LDS": f"{row.lds:.3f} [{row.low:.3f}, {row.high:.3f}]",
            "prepare, s": f"{row.prepare_s:.0f} ({row.prepare_processor_s:.0f})",
            "ms a query": f"{row.ms_a_query:.0f} ({row.processor_ms_a_query:.0f})",
            "bytes an example": f"{row.bytes_an_example:,.0f}",
            "stored once, MB": f"{(row.bytes_once or 0) / 1e6:.0f}",
            "notes": row.note,
        }
        for row in sorted(rows, key=lambda row: 2.0 if row.lds is None else -row.lds)
    ]


def parser() -> argparse.ArgumentParser:
    """The options."""
    found = parser_of(__doc__)
    add_options(found)
    found.set_defaults(learning_rate=1e-4)
    found.add_argument("--peers", type=Path, default=PROJECT / "build" / "peers", help="where the packages are")
    found.add_argument("--only", action="append", help="methods whose name contains this")
    return found


def main() -> None:
    """Measures and prints."""
    options = parser().parse_args()
    if options.peers.is_dir():
        # At the end: what the project itself depends on is never taken from there.
        sys.path.append(str(options.peers.resolve()))
    work = prepare(options)
    material = Material(work)
    plan = EvaluationPlan(fractions=options.fraction or [0.05], subsets=options.subsets, seed=options.seed)
    ids = [one["example_id"] for one in work.train]
    chosen = [
        *ours.methods(options.directions),
        *with_kronfluence.methods(),
        *with_trak.methods(),
        *with_dattri.methods(),
        *with_captum.methods(),
    ]
    if options.only:
        chosen = [one for one in chosen if any(part.lower() in _title(one).lower() for part in options.only)]
    said: list[tuple[Method, Scored | str]] = []
    for method in chosen:
        remark(f"== {_title(method)}")
        said.append((method, attempted(method, material)))
    for fraction in plan.fractions:
        truth = _truth(work, plan, fraction, ids)
        rows = [row for method, found in said for row in rows_of(method, found, truth)]
        about = {"machine": machine(), "examples": len(ids), "queries": len(work.queries) - truth.tuning}
        show({**about, "removed": f"{fraction:.0%}", "methods": shown_rows(rows)}, options)
        kept = work.folder / f"peers-{fraction:g}.json"
        kept.write_text(json.dumps([asdict(row) for row in rows], indent=1), encoding="utf-8")


def _truth(work: Work, plan: EvaluationPlan, fraction: float, ids: list[str]) -> Truth:
    removals = random_removals(ids, fraction, plan.subsets, seed=plan.seed)
    measured = work.retraining().measurements(removals)
    return Truth(membership(removals, ids), measured, plan.tuning_of(len(work.queries)))


if __name__ == "__main__":
    main()
