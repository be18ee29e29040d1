"""This project's own tiers, and the simple methods that anything must beat."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from torch import Tensor
from work import CHECKED

from influence_engine import Attributor, InfluenceIndex
from influence_engine.attribution.build_replay_basis import build_basis
from influence_engine.evaluation.baselines import (
    bm25,
    embedding_similarity,
    gradient_products,
    signed_by_label,
    training_losses,
)
from influence_engine.index import IndexSettings
from peers.common import Candidate, Material, Method, Scored, Seconds, size_of

TABLE = "examples.lance"


def methods(directions: int) -> list[Method]:
    """Ours: ``estimated``, with directions also ``replayed``; then the baselines."""
    found = [Method("estimated", None, _estimated, {"version": 1})]
    if directions:

        def replayed(material: Material, folder: Path) -> Scored:
            return _replayed(material, folder, directions)

        found.append(Method(f"replayed, {directions} directions", None, replayed, {"version": 1}))
    baselines: dict[str, Callable[[Material, Path], dict[str, Tensor]]] = {
        "BM25, signed by label": _bm25,
        "base embedding, signed by label": _embedding,
        "training loss, signed by label": _loss,
        "gradient product": _products,
    }
    return found + [Method(name, None, _baseline(compute), {"version": 1}) for name, compute in baselines.items()]


def _estimated(material: Material, folder: Path) -> Scored:
    attributor, prepare = _attributor(material, folder)
    return _scored(material, attributor, "estimated", prepare)


def _replayed(material: Material, folder: Path, directions: int) -> Scored:
    work = material.work
    attributor, prepare = _attributor(material, folder)
    with prepare.counted():
        build_basis(work.run, attributor, work.train, work.held_out[:-CHECKED], directions)
    return _scored(material, attributor, "replayed", prepare)


def _attributor(material: Material, folder: Path) -> tuple[Attributor, Seconds]:
    """Ours, with what building its index took when it was built."""
    work, prepare = material.work, Seconds()
    path, taken = folder.parent / "index", folder.parent / "index.json"
    with prepare.counted():
        index = InfluenceIndex.build_from_run(work.run, work.task, work.train, path, IndexSettings())
    if taken.exists():
        prepare = Seconds(**json.loads(taken.read_text(encoding="utf-8")))
    taken.write_text(json.dumps({"wall": prepare.wall, "processor": prepare.processor}), encoding="utf-8")
    return Attributor(work.run.load_model(), work.task, index), prepare


def _scored(
    material: Material, attributor: Attributor, tier: Literal["estimated", "replayed"], prepare: Seconds
) -> Scored:
    answer, index = Seconds(), attributor.index
    with answer.counted():
        scores = attributor.scores(material.work.queries, tier)
    rows = 0 if tier == "estimated" or index.basis is None else 2 * 4 * index.basis.width
    return Scored(
        [Candidate("", _in_order(material, attributor, scores), default=True)],
        prepare,
        answer,
        bytes_an_example=2 * index.manifest.dimensions + rows,
        bytes_once=size_of(index.folder) - size_of(index.folder / TABLE),
    )


def _in_order(material: Material, attributor: Attributor, scores: Tensor) -> Tensor:
    """Columns in the order of the training examples."""
    columns = {example_id: column for column, example_id in enumerate(attributor.index.example_ids)}
    return scores[:, [columns[one["example_id"]] for one in material.work.train]].float().contiguous()


def _baseline(compute: Callable[[Material, Path], dict[str, Tensor]]) -> Callable[[Material, Path], Scored]:
    def scored(material: Material, folder: Path) -> Scored:
        answer = Seconds()
        with answer.counted():
            found = compute(material, folder)
        candidates = [Candidate(setting, scores, not number) for number, (setting, scores) in enumerate(found.items())]
        return Scored(candidates, Seconds(), answer, bytes_an_example=0, bytes_once=0)

    return scored


def _signed(material: Material, similarity: Tensor) -> dict[str, Tensor]:
    work = material.work
    return {"": signed_by_label(similarity, work.train, work.queries, work.task.label).float()}


def _bm25(material: Material, folder: Path) -> dict[str, Tensor]:
    work = material.work
    texts: list[list[Any]] = [[one[work.task.text] for one in examples] for examples in (work.train, work.queries)]
    return _signed(material, bm25(*texts))


def _embedding(material: Material, folder: Path) -> dict[str, Tensor]:
    work = material.work
    return _signed(material, embedding_similarity(work.run.load_base(), work.task, work.train, work.queries))


def _loss(material: Material, folder: Path) -> dict[str, Tensor]:
    work = material.work
    losses = training_losses(work.run.load_model(), work.task, work.train).float()
    return _signed(material, losses.expand(len(work.queries), -1))


def _products(material: Material, folder: Path) -> dict[str, Tensor]:
    work = material.work
    attributor, _ = _attributor(material, folder)
    dot, cosine = gradient_products(attributor.model, work.task, attributor.tracked, work.train, work.queries)
    return {"dot": dot, "cosine": cosine}
