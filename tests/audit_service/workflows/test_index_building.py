"""Promise: an index can be asked as soon as a quick one is there, and what is ordered beyond it follows or is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from audit_service.artifacts.pending import pending_parts, pending_work
from audit_service.config import load_config
from audit_service.workflows.index_building import BuildOrder, build_for_serving, build_index, first_index
from audit_service.workspace import Workspace
from influence_engine.errors import SettingsError
from influence_engine.index import InfluenceIndex
from influence_engine.replay import ReplayPlan


@pytest.fixture
def unindexed(films: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A project with a recorded run and no index."""
    (films / "index").rename(tmp_path_factory.mktemp("aside") / "index")
    return Workspace(load_config("films"))


def test_a_provisional_index_comes_first_and_the_one_that_is_wanted_replaces_it(
    unindexed: Workspace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path / "bentoml"))
    folder = unindexed.config.index_folder
    current: list[str] = []
    coming: list[list[str]] = []

    def announced(message: str) -> None:
        coming.append([part.part for part in pending_parts(folder)])
        if message.startswith("Explanations can be asked for"):
            current.append(InfluenceIndex.open(folder).manifest.approximation)

    built = build_for_serving(unindexed, BuildOrder(directions=8), announced)

    assert current == ["final"]
    assert built.index["approximation"] == "unrolled"
    assert built.index["tiers"]["replayed"] == "available (8 directions)"
    assert coming[0] == ["index", "replayed"]
    assert coming[-1] == ["replayed"]
    assert pending_parts(folder) == []


def test_nothing_provisional_replaces_an_index_that_is_there(films: Path) -> None:
    workspace = Workspace(load_config("films"))
    first_index(workspace, BuildOrder())
    assert InfluenceIndex.open(workspace.config.index_folder).manifest.approximation == "unrolled"


def test_where_the_wanted_index_is_of_one_step_none_is_provisional(unindexed: Workspace) -> None:
    settings = unindexed.config.index.model_copy(update={"approximation": "final"})
    workspace = Workspace(unindexed.config.model_copy(update={"index": settings}))
    first_index(workspace, BuildOrder())
    first = InfluenceIndex.open(workspace.config.index_folder)
    assert first.manifest.approximation == "final"
    assert build_index(workspace).folder == first.folder


def test_without_the_time_for_the_fewest_directions_none_is_replayed_and_that_is_said(
    films: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENTOML_HOME", str(films / "bentoml"))
    said: list[str] = []
    built = build_for_serving(Workspace(load_config("films")), BuildOrder(directions=8, seconds=0.0), said.append)
    assert built.index["tiers"]["replayed"] != "available (8 directions)"
    (reason,) = [one for one in said if one.startswith("Not replayed: 8 directions over ")]
    assert "Replay later with: bento-audit index build films --directions 8" in reason


def test_without_the_time_for_more_the_provisional_index_stays_unchecked_and_that_is_said(
    unindexed: Workspace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path / "bentoml"))
    said: list[str] = []

    built = build_for_serving(unindexed, BuildOrder(directions=8, check=True, seconds=0.0), said.append)

    assert built.index["approximation"] == "final"
    assert built.index["calibration"] is None
    first_words = [one.split(":")[0] for one in said[2:]]
    assert first_words == ["The index along the training trajectory is put off", "Not replayed", "Not checked"]
    assert said[2].endswith("Build it later with: bento-audit index build films")
    assert said[4].endswith("Check later with: bento-audit index check films")


def test_two_processes_never_build_one_index(films: Path) -> None:
    workspace = Workspace(load_config("films"))
    with (
        pending_work(workspace.config.index_folder, ["replayed"]),
        pytest.raises(SettingsError, match="another process is at work on the index"),
    ):
        build_for_serving(workspace, BuildOrder(), lambda message: None)


@pytest.mark.parametrize(
    ("seconds", "directions"), [(1000.0, 8), (100.0, 8), (99.0, 7), (80.0, 6), (60.0, 4), (59.0, 0), (-5.0, 0)]
)
def test_as_many_directions_as_the_time_allows(seconds: float, directions: int) -> None:
    plan = ReplayPlan(8, 63, seconds=100.0, seconds_a_direction=10.0, disk_bytes=0, memory_bytes=0)
    assert plan.within(seconds, fewest=4) == directions
