"""Indexes of small recorded runs, and the exact replay that they are measured by."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from influence_engine import Attributor, FinetuneSettings, InfluenceIndex, Run, finetune
from influence_engine.attribution.build_replay_basis import measurement_directions
from influence_engine.index import IndexSettings
from influence_engine.replay import replay

SINGLE = IndexSettings(dtype="float32")

Network = Callable[[], nn.Module | None]


class StoppedError(Exception):
    """Raised by a test in the middle of a build."""


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def from_transformers() -> None:
    """The network of a run that needs none."""


class Adapted(nn.Module):
    """A fixed linear layer with an adapter, named as PEFT names them; nothing else is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.fixed = nn.Linear(6, 3, bias=False).requires_grad_(False)
        self.lora_A = nn.ModuleDict({"default": nn.Linear(6, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, 3, bias=False)})
        nn.init.zeros_(self.lora_B["default"].weight)

    def forward(self, inputs: Tensor) -> Tensor:
        adapted: Tensor = self.fixed(inputs) + 4.0 * self.lora_B["default"](self.lora_A["default"](inputs))
        return adapted


def adapted_network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(Adapted())


def recorded(task: Any, model: nn.Module, train: Any, folder: Path, **changes: Any) -> Run:
    """A small transformer's recorded run of four epochs."""
    common = {"epochs": 4, "batch_size": 8, "learning_rate": 5e-3, "seed": 3}
    settings = FinetuneSettings.model_validate({**common, **changes})
    return finetune(task, model, train, settings=settings, record_to=folder)


def attributed(run: Run, task: Any, train: Any, folder: Path, network: Network, **changes: Any) -> Attributor:
    """Explains a run by an index of its own; ``network`` makes a module that the run's weights are filled into."""
    settings = SINGLE.model_copy(update=changes)
    index = InfluenceIndex.build_from_run(run, task, train, folder, settings, into=network())
    return Attributor(run.load_model(network()), task, index)


def replayed(attributor: Attributor, run: Run, train: Any, queries: Any, network: Network) -> Tensor:
    """Influences by exact replay, ``[Q, N]``."""
    directions = measurement_directions(attributor, queries, torch.eye(len(queries)), run.trainable)
    return replay(run, attributor.task, train, directions, into=network(), at_once=len(queries))
