"""Style, types and layers of the whole house are tests like any other."""

from __future__ import annotations

import ast
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("audit_service", "influence_engine")
LONGEST_MODULE = 400
MOST_PARAMETERS = 7


def run(*command: str) -> None:
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert finished.returncode == 0, f"{' '.join(command)}\n{finished.stdout}{finished.stderr}"


def test_ruff_finds_nothing() -> None:
    run(sys.executable, "-m", "ruff", "check", ".")


def test_ruff_would_format_nothing() -> None:
    run(sys.executable, "-m", "ruff", "format", "--check", ".")


@pytest.mark.slow
def test_the_strict_type_checker_finds_nothing() -> None:
    run(sys.executable, "-m", "mypy")


def test_imports_go_downwards_only() -> None:
    run(str(Path(sysconfig.get_path("scripts")) / "lint-imports"))


def test_no_module_is_longer_than_the_house_allows() -> None:
    lengths = {
        path.relative_to(ROOT).as_posix(): len(path.read_text(encoding="utf-8").splitlines())
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
    }

    assert {name: length for name, length in lengths.items() if length > LONGEST_MODULE} == {}


def test_workflows_print_nothing() -> None:
    folder = ROOT / "audit_service" / "workflows"
    printing = [
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*.py")
        if any(
            isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        )
    ]

    assert printing == []


def test_every_module_says_in_one_line_what_it_is_for() -> None:
    silent = [
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if not (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").splitlines()
    ]

    assert silent == []


def test_no_function_of_the_library_has_more_parameters_than_the_house_allows() -> None:
    """``self`` and ``cls`` aside; what click calls has an argument for every option."""
    found = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not _is_a_click_command(node):
                    names = [one.arg for one in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
                    count = len(names) - (names[:1] in (["self"], ["cls"]))
                    if count > MOST_PARAMETERS:
                        found[f"{path.relative_to(ROOT)}: {node.name}"] = count
    assert found == {}


def _is_a_click_command(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return any("click." in ast.unparse(one) or ".command" in ast.unparse(one) for one in node.decorator_list)
