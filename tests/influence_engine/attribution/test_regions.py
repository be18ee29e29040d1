"""Promise: an explanation's regions sum to what they split: an example's influence, and what fine-tuning changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from influence_engine import Attributor, FinetuneSettings, IndexSettings, InfluenceIndex, finetune
from influence_engine.tasks import kept
from tests.tasks.toys import TOYS


@pytest.fixture(scope="module")
def attributor(tmp_path_factory: pytest.TempPathFactory) -> Attributor:
    """Of a small EfficientNet-Lite, with an index at the final weights, where the direction of a query is exact."""
    folder = tmp_path_factory.mktemp("regions")
    toy = TOYS["efficientnet-lite"](folder)
    settings = FinetuneSettings(trainable="all", epochs=2, batch_size=5, learning_rate=0.02, optimizer="sgd", seed=1)
    run = finetune(toy.task, toy.model(0), toy.train, settings=settings, record_to=folder / "run")
    chosen = IndexSettings.model_validate(
        {"approximation": "final", "damping": 0.5, "dtype": "float32", "metric": "identity"}
    )
    index = InfluenceIndex.build_from_run(run, toy.task, toy.train, folder / "index", chosen)
    return Attributor(run.load_model(), toy.task, index, base_model=run.load_base())


def queries(folder: Path) -> list[dict[str, object]]:
    return list(TOYS["efficientnet-lite"](folder).queries)


def test_regions_of_a_training_picture_sum_to_its_influence(attributor: Attributor, tmp_path: Path) -> None:
    for result in attributor.attribute(queries(tmp_path), top_k=6, parts=True):
        largest = max(abs(one.influence) for one in result.examples)
        for one in result.examples:
            assert one.parts is not None
            assert [part["start"] for part in one.parts] == [0, 1, 2, 3, None]
            together = sum(part["influence"] for part in one.parts)
            assert together == pytest.approx(one.influence, rel=0.02, abs=0.02 * largest)
            assert one.parts_residual == pytest.approx(one.influence - together, abs=1e-6)
            # A head on pooled features is split over what it pools: only its bias has no place.
            assert sum(abs(part["influence"]) for part in one.parts[:-1]) > abs(one.parts[-1]["influence"])


def test_regions_of_the_query_sum_to_the_change_over_modules(attributor: Attributor, tmp_path: Path) -> None:
    for result in attributor.attribute(queries(tmp_path), top_k=2, parts=True):
        assert result.changed_parts is not None
        whole = sum(one["change"] for one in result.modules)
        assert sum(part["change"] for part in result.changed_parts) == pytest.approx(whole, rel=1e-3, abs=1e-5)
    (plain,) = attributor.attribute(queries(tmp_path)[:1], top_k=2)
    assert plain.changed_parts is None
    assert all(one.parts is None for one in plain.examples)


def test_what_an_index_keeps_is_enough_to_split(attributor: Attributor, tmp_path: Path) -> None:
    (result,) = attributor.attribute(queries(tmp_path)[:1], top_k=1, parts=True)
    stored = result.examples[0].fields
    assert stored["image"].startswith("data:image/png;name=")
    assert kept(attributor.task, stored)["image"] == stored["image"]
