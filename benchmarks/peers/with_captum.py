"""Captum: TracInCP over recorded checkpoints (Pruthi et al. 2020), BSD-3-Clause."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from support import remark
from torch import Tensor, nn

from influence_engine.training.step import put_parameters
from peers.common import Candidate, Material, Method, Scored, Seconds, margin


def methods() -> list[Method]:
    return [Method("TracInCP", "captum", _tracin, {"version": 1})]


def _loss(logits: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits, labels, reduction="none")


def _negative_margin(logits: Tensor, labels: Tensor) -> Tensor:
    # A loss, for the package: influence is positive where an example lowers it.
    return -margin(logits, labels)


def _tracin(material: Material, folder: Path) -> Scored:
    from captum.influence import TracInCP

    run = material.work.run
    model = material.classifier()
    # A checkpoint's learning rate is what was stepped since the one before it.
    spans = list(zip(run.checkpoints, run.checkpoints[1:], strict=False))
    rates = {last: float(run.learning_rates[first:last].sum()) for first, last in spans}

    def load(module: nn.Module, step: Any) -> float:
        put_parameters(module.model, run.checkpoint(int(step))[0])
        return rates[int(step)]

    parts: dict[int, Tensor] = {}
    answer = Seconds()
    for step in rates:
        # One checkpoint at a time: the package keeps every query's gradients at all of them at once.
        with answer.counted():
            tracin = TracInCP(
                model,
                material.train(1),
                checkpoints=[str(step)],
                checkpoints_load_func=load,
                loss_fn=_loss,
                test_loss_fn=_negative_margin,
            )
            scores = tracin.influence(material.queries(1))
        parts[step] = material.by_example(scores.detach().float())
        remark(f"TracInCP: checkpoint {step}, {answer.wall:.0f} s so far")
    found = [Candidate(f"all {len(parts)} checkpoints, its default", torch.stack(list(parts.values())).sum(0), True)]
    if len(parts) > 1:
        found += [Candidate(f"checkpoint {step} alone", part) for step, part in parts.items()]
    return Scored(
        found,
        prepare=Seconds(),
        answer=answer,
        bytes_an_example=0,
        bytes_once=sum((run.folder / "checkpoints" / f"step-{step:06d}.safetensors").stat().st_size for step in parts),
        note="every query passes over all training examples at all checkpoints; "
        "its checkpoints are the record's, with the optimiser's state",
    )
