"""Kronfluence: EK-FAC influence functions (Grosse et al. 2023), Apache-2.0."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from support import remark
from torch import Tensor, nn
from torch.nn import functional

from peers.common import Candidate, Material, Method, Scored, Seconds, margin, size_of

TRAIN_BATCH, QUERY_BATCH = 32, 64
RELATIVE = (1.0, 10.0, 100.0, 1000.0)
"""Dampings of the grid besides the package's own two, in units of the mean eigenvalue over all layers."""


def methods() -> list[Method]:
    return [Method("EK-FAC", "kronfluence", _ekfac, {"relative": RELATIVE, "version": 2})]


def _ekfac(material: Material, folder: Path) -> Scored:
    from kronfluence import Analyzer, FactorArguments, ScoreArguments, Task, prepare_model
    from kronfluence.utils.dataset import DataLoaderKwargs

    model = material.classifier()
    layers = model.trained_linear()

    class Classification(Task):  # type: ignore[misc]
        def compute_train_loss(self, batch: Any, model: nn.Module, sample: bool = False) -> Tensor:
            logits, labels = model(*batch[:-1]), batch[-1]
            if sample:
                # The true Fisher, which the package recommends, takes labels that the model believes in.
                labels = torch.multinomial(logits.detach().softmax(-1), 1).flatten()
            return functional.cross_entropy(logits, labels, reduction="sum")

        def compute_measurement(self, batch: Any, model: nn.Module) -> Tensor:
            return -margin(model(*batch[:-1]), batch[-1]).sum()

        def get_influence_tracked_modules(self) -> list[str]:
            return layers

        def get_attention_mask(self, batch: Any) -> Any:
            # The pooler and the head see one vector a text: a mask over positions is not for them.
            return {name: batch[2] for name in layers if ".encoder." in name}

    torch.manual_seed(0)
    task = Classification()
    model = prepare_model(model, task)
    cpu = material.device.type == "cpu"
    analyzer = Analyzer("peers", model, task, cpu=cpu, disable_tqdm=True, output_dir=str(folder))
    analyzer.set_dataloader_kwargs(DataLoaderKwargs(collate_fn=material.batch))
    train, queries = material.train(1).dataset, material.queries(1).dataset
    prepare = Seconds()
    with prepare.counted():
        analyzer.fit_all_factors(
            "ekfac",
            train,
            per_device_batch_size=TRAIN_BATCH,
            factor_args=FactorArguments(strategy="ekfac"),
            overwrite_output_dir=True,
        )
    mean = _mean_eigenvalue(analyzer.load_all_factors("ekfac"))
    grid: dict[str, float | None] = {"damping 1e-8, its default": 1e-8, "its heuristic, 0.1 mean eigenvalues": None}
    grid |= {f"damping {factor * mean:.2g}": factor * mean for factor in RELATIVE}
    found, answer = [], Seconds()
    for number, (setting, damping) in enumerate(grid.items()):
        taken = Seconds()
        with taken.counted():
            analyzer.compute_pairwise_scores(
                f"scores-{number}",
                "ekfac",
                query_dataset=queries,
                train_dataset=train,
                per_device_query_batch_size=QUERY_BATCH,
                per_device_train_batch_size=TRAIN_BATCH,
                score_args=ScoreArguments(damping_factor=damping),
                overwrite_output_dir=True,
            )
        answer.wall += taken.wall / len(grid)
        answer.processor += taken.processor / len(grid)
        scores = analyzer.load_pairwise_scores(f"scores-{number}")
        influences = material.by_example(scores["all_modules"].float())
        found.append(Candidate(setting, influences, default=number == 0))
        remark(f"Kronfluence: {setting} in {taken.wall:.0f} s")
    return Scored(
        found,
        prepare,
        answer,
        bytes_an_example=0,
        bytes_once=size_of(folder / "peers" / "factors_ekfac"),
        note=f"linear layers only; queries pass over all training examples, {QUERY_BATCH} at once",
    )


def _mean_eigenvalue(factors: dict[str, dict[str, Tensor]]) -> float:
    total, count = 0.0, 0
    for name, matrix in factors["lambda_matrix"].items():
        seen = float(factors["num_lambda_processed"][name])
        total += float(matrix.double().sum()) / seen
        count += matrix.numel()
    return total / count
