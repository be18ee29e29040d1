"""TRAK: projected gradients of the margin (Park et al. 2023), MIT."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from peers.common import Candidate, Material, Method, Scored, Seconds, size_of

DIMENSIONS = (512, 2048)
"""The second is its default. More take hours: its projector for processors draws its matrix anew every batch."""

BATCH = 128
RELATIVE = (1e-2, 1e-1, 1.0, 10.0, 100.0, 1000.0, 10000.0)
"""Regularisations of the grid, in units of the mean eigenvalue of the projected features' Gram matrix."""

MODEL = 0


def methods() -> list[Method]:
    return [_method(dimensions) for dimensions in DIMENSIONS]


def _method(dimensions: int) -> Method:
    def trak(material: Material, folder: Path) -> Scored:
        return _trak(material, folder, dimensions)

    return Method(f"TRAK, one model, {dimensions} dimensions", "traker", trak, {"relative": RELATIVE, "version": 2})


def _trak(material: Material, folder: Path, dimensions: int) -> Scored:
    from trak import TRAKer

    model = material.classifier()
    weights = model.state_dict()
    count = len(material.work.train)
    traker = TRAKer(
        model=model,
        task="text_classification",
        train_set_size=count,
        save_dir=str(folder),
        device=material.device.type,
        proj_dim=dimensions,
        use_half_precision=False,
        logging_level=logging.WARNING,
    )
    prepare, answer = Seconds(), Seconds()
    with prepare.counted():
        traker.load_checkpoint(weights, model_id=MODEL)
        for batch in material.train(BATCH):
            traker.featurize(batch=batch, num_samples=len(batch[0]))
        traker.finalize_features()
    kept = size_of(folder)
    with answer.counted():
        traker.start_scoring_checkpoint("queries", weights, model_id=MODEL, num_targets=len(material.work.queries))
        for batch in material.queries(BATCH):
            traker.score(batch=batch, num_samples=len(batch[0]))
        scores = traker.finalize_scores("queries")
    found = [Candidate("lambda 0, its default", _influences(material, scores), default=True)]
    features = torch.as_tensor(traker.saver.current_store["grads"])
    mean = float(features.pow(2).sum()) / dimensions
    for factor in RELATIVE:
        # The features of training examples and queries stay; only what lambda changes is computed again.
        traker.saver.model_ids[MODEL]["is_finalized"] = 0
        traker.projector.proj_matrix = torch.empty(0)  # which finalize_features frees, and freed already
        traker.score_computer.lambda_reg = factor * mean
        traker.finalize_features()
        found.append(Candidate(f"lambda {factor * mean:.2g}", _influences(material, traker.finalize_scores("queries"))))
    return Scored(
        found,
        prepare,
        answer,
        bytes_an_example=kept / count,
        bytes_once=0,
        note=("" if dimensions >= max(DIMENSIONS) else f"{dimensions} dimensions where its default is 2,048; ")
        + "single precision; for every batch of queries the projection matrix is drawn again, here once for all",
    )


def _influences(material: Material, scores: Any) -> torch.Tensor:
    # Copied, for the array is a view of a file that the next lambda overwrites.
    return material.by_example(torch.tensor(scores).float().T.contiguous())
