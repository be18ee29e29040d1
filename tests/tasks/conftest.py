"""One toy at a time, trained with a record and indexed once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from torch import nn

from influence_engine import Attributor, FinetuneSettings, IndexSettings, InfluenceIndex, Run, finetune
from tests.tasks.toys import TOYS, Toy


@dataclass(frozen=True)
class Trained:
    """A toy with a recorded training of its model and an index of it."""

    toy: Toy
    run: Run
    folder: Path

    @property
    def into(self) -> nn.Module | None:
        return self.toy.model(0) if self.toy.plain else None

    def model(self) -> nn.Module:
        return self.run.load_model(self.into)

    def base(self) -> nn.Module:
        return self.run.load_base(self.into)

    def index(self) -> InfluenceIndex:
        return InfluenceIndex.open(self.folder / "index")

    def attributor(self) -> Attributor:
        return Attributor(self.model(), self.toy.task, self.index(), base_model=self.base())


def build(trained: Trained, folder: Path, train: list[dict[str, object]], **settings: object) -> InfluenceIndex:
    chosen = IndexSettings.model_validate({"dtype": "float32", **settings})
    return InfluenceIndex.build_from_run(trained.run, trained.toy.task, train, folder, chosen, into=trained.into)


@pytest.fixture(scope="session", params=TOYS)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp(request.param)
    toy = TOYS[request.param](folder)
    # Without clipping and Adam's signs of small gradients, so that what training again finds has a derivative.
    settings = FinetuneSettings(
        trainable=toy.trainable,
        epochs=3,
        batch_size=5,
        learning_rate=toy.learning_rate,
        optimizer="sgd",
        max_grad_norm=None,
        seed=1,
    )
    run = finetune(toy.task, toy.model(0), toy.train, settings=settings, record_to=folder / "run")
    found = Trained(toy, run, folder)
    build(found, folder / "index", toy.train)
    return found
