"""Promise: a task that was moved is the same, one that was changed is another; digests cover what a model reads."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from influence_engine.digests import json_digest
from influence_engine.tasks import content_digest, describe_task, matches_task, matches_task_digest, task_digest

SOURCE = '''
import torch


class Points:
    """{docstring}"""

    def __init__(self, scale=1.0):
        self.scale = scale
        self._cache = {{}}

    def collate(self, examples):
        return {{"x": torch.tensor([example["x"] for example in examples]) * self.scale}}

    def outputs(self, model, batch):
        return model(batch["x"])

    def loss(self, outputs, batch):
        return outputs.{power}

    def measurement(self, outputs, batch):
        return outputs.sum(-1)
'''


def module(path: Path, **words: str) -> ModuleType:
    path.write_text(SOURCE.format(**{"docstring": "A task.", "power": "square().sum(-1)", **words}))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def digest(task: Any) -> str:
    return task_digest(task)


def test_a_class_that_was_moved_or_documented_is_the_same_task(tmp_path: Path) -> None:
    here, there = module(tmp_path / "here.py"), module(tmp_path / "there.py", docstring="Moved, and better documented.")
    assert digest(here.Points()) == digest(there.Points())


def test_a_class_that_was_changed_or_holds_something_else_is_another(tmp_path: Path) -> None:
    one, other = module(tmp_path / "one.py"), module(tmp_path / "other.py", power="abs().sum(-1)")
    assert len({digest(one.Points()), digest(other.Points()), digest(one.Points(scale=2.0))}) == 3


def test_what_a_task_keeps_to_itself_does_not_matter(tmp_path: Path) -> None:
    task = module(tmp_path / "one.py").Points()
    before = digest(task)
    task._cache["a"] = object()
    assert digest(task) == before


def test_manifests_that_name_the_class_alone_are_still_its_own(tmp_path: Path) -> None:
    task = module(tmp_path / "one.py").Points()
    by_name = {"type": "one.Points"}
    assert matches_task(task, by_name)
    assert matches_task(task, describe_task(task))
    assert matches_task_digest(task, json_digest(by_name))
    assert not matches_task(task, {"type": "two.Points"})
    assert not matches_task_digest(task, None)


def test_the_fields_of_a_promised_task_say_all_that_it_reads(task: Any, make_examples: Any) -> None:
    assert content_digest(task, make_examples(3)) is None


def test_files_that_examples_point_to_are_digested_whether_the_task_says_so_or_not(tmp_path: Path) -> None:
    class FromFiles:
        def collate(self, examples: Any) -> Any:
            import torch

            return {"x": torch.stack([torch.from_numpy(np.load(example["path"])) for example in examples])}

    examples = [{"example_id": str(number), "path": str(tmp_path / f"{number}.npy")} for number in range(2)]
    for number, example in enumerate(examples):
        np.save(example["path"], np.full(3, number))
    task: Any = FromFiles()
    before = content_digest(task, examples)
    assert content_digest(task, examples[::-1]) == before
    np.save(examples[1]["path"], np.full(3, -1))
    assert content_digest(task, examples) != before
