"""Promise: outside of ``influence_engine/tasks`` nothing knows what a text, a label, an image or a tokenizer is.

What is left are names that others fixed: columns on disk, keys of configs and answers, other libraries' arguments.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

OF_A_TASK = {"text", "label", "labels", "tokenizer", "max_length"}
"""What was once asked of a task directly: its contract has ``fields``, ``target``s and a ``processor`` now."""

OF_A_KIND = {"text", "texts", "tokenizer", "image", "pixel_values", "input_ids", "token_type_ids"}
"""Names of what only some tasks have."""

FIXED_ELSEWHERE = {
    "influence_engine/data/sources/atis.py": "columns of a data set that is about texts",
    "influence_engine/data/sources/vader.py": "columns of a data set that is about texts",
    "influence_engine/data/sources/elpv.py": "columns of a data set of pictures",
    "influence_engine/models/efficientnet_lite.py": "what a model of pictures calls its input",
    "influence_engine/training/identity.py": "the digest's key of a processor, in records of before",
    "influence_engine/training/writer.py": "the same",
    "audit_service/config/sections.py": "the config's keys",
    "audit_service/config/settings.py": "the config's keys, from which a task is made",
    "audit_service/prediction/export_files.py": "the folder of a processor, in exports of before",
}

SOURCES = sorted(
    path
    for package in ("influence_engine", "audit_service")
    for path in (ROOT / package).rglob("*.py")
    if not path.is_relative_to(ROOT / "influence_engine" / "tasks")
)


def asked_of_a_task(tree: ast.AST) -> Iterator[str]:
    """``task.label``, ``config.task.labels``, ``getattr(task, "text")``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in OF_A_TASK and _is_task(node.value):
            yield f"{node.lineno}: {ast.unparse(node)}"
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr") and _is_task(node.args[0]):
            name = node.args[1]
            if not isinstance(name, ast.Constant) or name.value != "check":  # the hot path asks without the protocol
                yield f"{node.lineno}: {ast.unparse(node)}"


def named_kinds(tree: ast.AST) -> Iterator[str]:
    """String constants that name what only some tasks have."""
    documentation = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and id(node) not in documentation and node.value in OF_A_KIND:
            yield f"{node.lineno}: {node.value!r}"


def _is_task(node: ast.expr) -> bool:
    return ast.unparse(node).rpartition(".")[2] in ("task", "_task", "base_task")


def test_no_task_is_asked_for_what_only_some_have() -> None:
    found = {
        path.relative_to(ROOT).as_posix(): list(asked_of_a_task(ast.parse(path.read_text(encoding="utf-8"))))
        for path in SOURCES
    }
    assert {name: lines for name, lines in found.items() if lines and name not in FIXED_ELSEWHERE} == {}


def test_the_engine_names_no_kind_of_input() -> None:
    found = {
        path.relative_to(ROOT).as_posix(): list(named_kinds(ast.parse(path.read_text(encoding="utf-8"))))
        for path in SOURCES
        if path.is_relative_to(ROOT / "influence_engine")
    }
    assert {name: lines for name, lines in found.items() if lines and name not in FIXED_ELSEWHERE} == {}


def test_no_exception_is_kept_for_a_file_that_needs_none() -> None:
    needed = set()
    for path in SOURCES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        words = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        words |= {
            node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        if words & (OF_A_TASK | OF_A_KIND):
            needed.add(path.relative_to(ROOT).as_posix())
    assert set(FIXED_ELSEWHERE) <= needed


@pytest.mark.parametrize(
    "source",
    [
        "task.label",
        "self.task.labels",
        "config.task.text",
        'getattr(task, "tokenizer", None)',
        'hasattr(self.task, "x")',
    ],
)
def test_what_asks_a_task_is_seen(source: str) -> None:
    assert list(asked_of_a_task(ast.parse(source)))
