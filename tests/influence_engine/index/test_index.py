"""Promises: where nothing is cut the index gives the exact GGN influence; it survives kills; it refuses strangers."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from influence_engine import Attributor, IndexSettings, InfluenceIndex, Run
from influence_engine.curvature import adam_preconditioner, exact_influence, identity_preconditioner
from influence_engine.errors import (
    DataError,
    DigestMismatchError,
    IndexFormatError,
    ModelError,
)
from influence_engine.gradients import track
from influence_engine.progress import silent

EXACT = IndexSettings(dtype="float32", damping=0.05)


def dual(model: nn.Module, task: Any, train: Any, queries: Any, index: InfluenceIndex, run: Run) -> Tensor:
    tracked = track(model)
    moments = run.second_moments()
    if index.manifest.metric == "adam":
        assert moments is not None
        scales = adam_preconditioner(tracked, moments, run.epsilon or 0.0)
    else:
        scales = identity_preconditioner(tracked)
    preconditioner = {name: (m.row.double()[:, None] * m.column.double()).pow(-2) for name, m in scales.items()}
    damping = index.manifest.damping
    return exact_influence(model, task, tracked, train, queries, damping=damping, preconditioner=preconditioner)


@pytest.fixture
def index(
    vector_run: Run,
    vector_task: Any,
    vector_train: Any,
    vector_queries: Any,
    index_folder: Path,
    fresh_network: nn.Module,
) -> InfluenceIndex:
    return InfluenceIndex.build_from_run(
        vector_run, vector_task, vector_train, index_folder, EXACT, into=fresh_network, held_out=vector_queries
    )


@pytest.mark.parametrize("metric", ["adam", "identity"])
def test_scores_equal_the_exact_dual_influence(
    metric: Any,
    vector_run: Run,
    vector_model: nn.Module,
    vector_task: Any,
    vector_train: Any,
    vector_queries: Any,
    index_folder: Path,
    fresh_network: nn.Module,
) -> None:
    settings = EXACT.model_copy(update={"metric": metric})
    index = InfluenceIndex.build_from_run(
        vector_run, vector_task, vector_train, index_folder, settings, into=fresh_network
    )
    scores = Attributor(vector_model, vector_task, index).scores(vector_queries)
    expected = dual(vector_model, vector_task, vector_train, vector_queries, index, vector_run)
    assert float((scores - expected).norm() / expected.norm()) < 1e-5


def test_half_precision_agrees_with_single(
    index: InfluenceIndex,
    vector_run: Run,
    vector_model: nn.Module,
    vector_task: Any,
    vector_train: Any,
    vector_queries: Any,
    tmp_path: Path,
    fresh_network: nn.Module,
) -> None:
    half = InfluenceIndex.build_from_run(
        vector_run, vector_task, vector_train, tmp_path / "half", IndexSettings(damping=0.05), into=fresh_network
    )
    single, rough = (Attributor(vector_model, vector_task, each).scores(vector_queries) for each in (index, half))
    assert float((single - rough).norm() / single.norm()) < 1e-2


def test_queries_in_slices_batches_and_orders_give_the_same_scores(
    index: InfluenceIndex, vector_model: nn.Module, vector_task: Any, vector_queries: Any
) -> None:
    attributor = Attributor(vector_model, vector_task, index)
    whole = attributor.scores(vector_queries)
    one_by_one = attributor.scores(vector_queries, batch_size=1)
    backwards = attributor.scores(vector_queries[::-1], batch_size=3).flip(0)
    torch.testing.assert_close(one_by_one, whole, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(backwards, whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "settings",
    [
        EXACT,
        IndexSettings(dtype="float32"),
        IndexSettings(dtype="float32", hessian_directions=0),
        IndexSettings(dtype="float32", approximation="segments"),
    ],
)
def test_builds_with_other_batches_give_the_same_scores(
    settings: IndexSettings,
    vector_run: Run,
    vector_model: nn.Module,
    vector_task: Any,
    vector_train: Any,
    vector_queries: Any,
    tmp_path: Path,
    fresh_network: nn.Module,
) -> None:
    first, second = (
        Attributor(
            vector_model,
            vector_task,
            InfluenceIndex.build_from_run(
                vector_run,
                vector_task,
                vector_train,
                tmp_path / str(tokens),
                settings.model_copy(update={"batch_tokens": tokens}),
                into=fresh_network,
            ),
        ).scores(vector_queries)
        for tokens in (60, 13)
    )
    assert float((first - second).norm() / first.norm()) < 1e-5


def test_the_index_covers_every_example_in_order(index: InfluenceIndex, vector_train: Any) -> None:
    assert index.example_ids == [example["example_id"] for example in vector_train]
    taken = index.table.take([3, 1])
    assert [row["example_id"] for row in taken] == ["train-0003", "train-0001"]
    assert taken[0]["fields"] == {"x": pytest.approx(vector_train[3]["x"]), "label": vector_train[3]["label"]}
    assert len({row["example_handle"] for row in index.table.take(range(60))}) == 60


def test_default_damping_is_read_from_the_record(
    vector_run: Run, vector_task: Any, vector_train: Any, index_folder: Path, fresh_network: nn.Module
) -> None:
    built = InfluenceIndex.build_from_run(
        vector_run, vector_task, vector_train, index_folder, IndexSettings(approximation="final"), into=fresh_network
    )
    steps = vector_run.learning_rates * vector_run.clip_factors
    assert built.manifest.damping == pytest.approx(1 / float(steps.sum()))
    assert (built.manifest.damping_source, built.manifest.metric) == ("record", "adam")


def test_without_a_record_the_index_says_which_tiers_it_lacks_and_why(
    vector_model: nn.Module, vector_task: Any, vector_train: Any, index_folder: Path
) -> None:
    built = InfluenceIndex.build(vector_model, vector_task, vector_train, index_folder)
    assert built.manifest.tiers["estimated"] == "available"
    assert "not recorded" in built.manifest.tiers["replayed"]


def test_building_again_keeps_the_version(
    index: InfluenceIndex, vector_run: Run, vector_task: Any, vector_train: Any, fresh_network: nn.Module
) -> None:
    root = index.folder.parent.parent
    again = InfluenceIndex.build_from_run(vector_run, vector_task, vector_train, root, EXACT, into=fresh_network)
    assert again.manifest.created == index.manifest.created
    assert again.manifest.content_digest == index.manifest.content_digest


def test_a_second_version_becomes_current_and_the_first_stays(
    index: InfluenceIndex, vector_run: Run, vector_task: Any, vector_train: Any, fresh_network: nn.Module
) -> None:
    root = index.folder.parent.parent
    other = EXACT.model_copy(update={"damping": 0.5})
    second = InfluenceIndex.build_from_run(vector_run, vector_task, vector_train, root, other, into=fresh_network)
    assert second.folder != index.folder
    assert InfluenceIndex.open(root).folder == second.folder
    assert InfluenceIndex.open(root, version=index.folder.name).manifest == index.manifest


def test_an_index_of_another_model_is_refused(index: InfluenceIndex) -> None:
    with pytest.raises(DigestMismatchError, match="was built for the model with digest"):
        InfluenceIndex.open(index.folder.parent.parent, model_digest="0" * 64)


def test_an_index_of_another_task_is_refused(index: InfluenceIndex, vector_model: nn.Module, vector_task: Any) -> None:
    class Other(type(vector_task)):  # type: ignore[misc]
        def describe(self) -> dict[str, Any]:
            return {"type": "other vectors"}

    with pytest.raises(DigestMismatchError, match="was built for the task"):
        Attributor(vector_model, Other(), index)


def test_rows_have_the_recorded_order_whatever_order_is_given(
    index: InfluenceIndex,
    vector_run: Run,
    vector_task: Any,
    vector_train: Any,
    tmp_path: Path,
    fresh_network: nn.Module,
) -> None:
    other = InfluenceIndex.build_from_run(
        vector_run, vector_task, vector_train[::-1], tmp_path / "other", EXACT, into=fresh_network
    )
    assert other.example_ids == index.example_ids


def test_changed_training_data_are_refused(
    vector_run: Run, vector_task: Any, vector_train: Any, index_folder: Path, fresh_network: nn.Module
) -> None:
    changed = [{**vector_train[0], "label": (vector_train[0]["label"] + 1) % 3}, *vector_train[1:]]
    with pytest.raises(DigestMismatchError, match="the data given is not that of the run"):
        InfluenceIndex.build_from_run(vector_run, vector_task, changed, index_folder, EXACT, into=fresh_network)


def test_a_flipped_byte_in_the_encoder_is_found_on_opening(index: InfluenceIndex) -> None:
    path = index.folder / "encoder.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(DigestMismatchError, match=r"encoder\.safetensors has changed"):
        InfluenceIndex.open(index.folder.parent.parent)


def test_a_changed_row_is_found_by_verify(index: InfluenceIndex) -> None:
    import lance

    index.verify()
    lance.dataset(str(index.folder / "examples.lance")).update(
        {"source": "'forged'"}, where="example_id = 'train-0007'"
    )
    with pytest.raises(DigestMismatchError, match=r"latest_version_hint\.json has changed"):
        InfluenceIndex.open(index.folder.parent.parent).verify()
    path = index.folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "parts": {}}))
    with pytest.raises(DigestMismatchError, match="content digest"):
        InfluenceIndex.open(index.folder.parent.parent).verify()


def test_a_missing_index_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(IndexFormatError, match="holds no index; make one with: bento-audit index build"):
        InfluenceIndex.open(tmp_path)


def test_an_index_of_an_unknown_format_is_refused(index: InfluenceIndex) -> None:
    path = index.folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": 99}))
    with pytest.raises(
        IndexFormatError,
        match=r"format version 99, written by bento-audit .*; this one reads format versions 3 to 3\. Install",
    ):
        InfluenceIndex.open(index.folder.parent.parent)


def test_a_gradient_that_is_not_finite_names_the_example(
    vector_model: nn.Module, vector_task: Any, vector_train: Any, index_folder: Path
) -> None:
    bad = [*vector_train[:5], {**vector_train[5], "x": [3e38] * 6}, *vector_train[6:]]
    with pytest.raises(ModelError, match=r"example 'train-0005' is not finite in layer"):
        InfluenceIndex.build(vector_model, vector_task, bad, index_folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda train: [], "there are no training examples"),
        (lambda train: [*train, train[0]], "have the same example_id"),
        (lambda train: [{k: v for k, v in train[0].items() if k != "example_id"}], "has no example_id"),
    ],
)
def test_unusable_examples_are_refused(
    change: Any, message: str, vector_model: nn.Module, vector_task: Any, vector_train: Any, index_folder: Path
) -> None:
    with pytest.raises(DataError, match=message):
        InfluenceIndex.build(vector_model, vector_task, change(vector_train), index_folder)
    assert not index_folder.exists()


def test_the_plan_names_size_and_time_before_building(
    vector_model: nn.Module, vector_task: Any, vector_train: Any, index: InfluenceIndex
) -> None:
    plan = InfluenceIndex.plan(vector_model, vector_task, vector_train, EXACT)
    assert plan.examples == 60
    assert plan.parameters == sum(p.numel() for p in vector_model.parameters())
    assert plan.seconds is not None
    assert plan.seconds > 0
    assert index.manifest.rows * index.manifest.dimensions * 4 <= plan.disk_bytes


BUILD = textwrap.dedent(
    """
    import sys
    sys.path.insert(0, sys.argv[1])
    from influence_engine import IndexSettings, InfluenceIndex, Run
    from tests.influence_engine.vectors import VectorClassification, make_network, make_vectors
    def progress(stage, done, total, note=""):
        print(stage, done, flush=True)
        sys.stdin.readline()  # it goes on when it is told to
    InfluenceIndex.build_from_run(
        Run.open(sys.argv[2]), VectorClassification(), make_vectors(60, seed=1, prefix="train-"),
        sys.argv[3], IndexSettings(dtype="float32", damping=0.05, sample=20, batch_tokens=24),
        into=make_network(), progress=progress)
    """
)


@pytest.mark.parametrize(
    ("stage", "nth"), [("fitting the GGN's basis", 1), ("indexing the examples", 4), ("writing the index", 1)]
)
def test_a_killed_build_goes_on_and_gives_the_same_scores(
    stage: str,
    nth: int,
    tmp_path: Path,
    vector_run: Run,
    vector_model: nn.Module,
    vector_task: Any,
    vector_train: Any,
    vector_queries: Any,
    fresh_network: nn.Module,
) -> None:
    root, killed = Path(__file__).parents[3], tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, "-c", BUILD, str(root), str(vector_run.folder), str(killed)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    seen = 0
    for line in process.stdout:
        seen += line.startswith(stage)
        if seen == nth:
            process.send_signal(signal.SIGKILL)
            break
        process.stdin.write("\n")
        process.stdin.flush()
    assert process.wait() == -signal.SIGKILL
    with pytest.raises(IndexFormatError, match="unfinished build; go on with"):
        InfluenceIndex.open(killed)
    settings = EXACT.model_copy(update={"sample": 20, "batch_tokens": 24})
    stages: set[str] = set()

    def resumed(stage: str, done: int, total: int, note: str = "") -> None:
        stages.add(stage)

    for folder, progress in ((killed, resumed), (tmp_path / "whole", silent)):
        InfluenceIndex.build_from_run(
            vector_run, vector_task, vector_train, folder, settings, into=fresh_network, progress=progress
        )
    assert "fitting the layers' bases" not in stages  # on disk already
    scores = [
        Attributor(vector_model, vector_task, each).scores(vector_queries)
        for each in map(InfluenceIndex.open, (killed, tmp_path / "whole"))
    ]
    torch.testing.assert_close(scores[0], scores[1], rtol=1e-4, atol=1e-5)
    assert not any((killed / "building").iterdir())
