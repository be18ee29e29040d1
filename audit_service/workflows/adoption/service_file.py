"""Adds the audit to the source of a BentoML service that exists already: an import, a base class, a decorator."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass

from audit_service.workflows.adoption.answer_fields import Answer, Method, answer_of, fields_of_class
from audit_service.workflows.adoption.columns import TEXT_NAMES
from influence_engine.errors import SettingsError

MIXIN = "AuditMixin"
DECORATOR = "audited"
METHOD_NAMES = ("predict", "classify")


@dataclass(frozen=True)
class EditedService:
    """A service's source with the audit added.

    Attributes:
        source: The new source.
        service: Name of the class.
        method: Name of the method whose predictions are audited.
        clear: Whether its source says which field of its answer holds the label; otherwise it must be filled in.
    """

    source: str
    service: str
    method: str
    clear: bool


def add_audit(source: str, *, config: str, name: str) -> EditedService:
    """Adds the audit to the first BentoML service of ``source`` that has an API method.

    The method is ``predict`` or ``classify``, else the first. Only lines are added or completed; all others stay as
    they are.

    Args:
        source: Python source.
        config: Name of the config that the service belongs to.
        name: What the source is called in messages.

    Raises:
        SettingsError: this is not Python, holds no BentoML service with an API method, or is audited already.
    """
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        raise SettingsError(f"{name}, line {error.lineno}: not valid Python: {error.msg}", field="service") from error
    service, method = _find(tree, name)
    lines = source.splitlines(keepends=True)
    answer = answer_of(tree, method)
    decorator = f"@{DECORATOR}({', '.join(_arguments(tree, method, answer))})"
    # From the bottom up, so that the line numbers above stay true.
    _insert(lines, method.lineno, " " * method.col_offset + decorator)
    _complete_class(lines, service, config)
    _insert(lines, _line_after_imports(tree) + 1, f"from audit_service import {MIXIN}, {DECORATOR}")
    return EditedService("".join(lines), service.name, method.name, answer.clear)


def _find(tree: ast.Module, name: str) -> tuple[ast.ClassDef, Method]:
    services = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and _decorated(node, "service")]
    for service in services:
        if any(_last_name(base) == MIXIN for base in service.bases):
            raise SettingsError(f"{name}: {service.name} is audited already", field="service")
        methods = [
            node
            for node in service.body
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and _decorated(node, "api")
        ]
        if methods:
            return service, next((method for method in methods if method.name in METHOD_NAMES), methods[0])
    raise SettingsError(
        f"{name} holds no class with @bentoml.service and a method with @bentoml.api to add the audit to",
        field="service",
    )


def _decorated(node: ast.ClassDef | Method, name: str) -> bool:
    return any(_last_name(decorator) == name for decorator in node.decorator_list)


def _last_name(node: ast.expr) -> str | None:
    if isinstance(node, ast.Call):
        return _last_name(node.func)
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else None


def _arguments(tree: ast.Module, method: Method, answer: Answer) -> Iterator[str]:
    """The decorator's arguments: parts of the answer, and the input where it is not called ``text``."""
    yield f"label={answer.label}"
    if answer.confidence is not None:
        yield f"confidence={answer.confidence}"
    inputs = list(_inputs(tree, method))
    names = [path.rpartition(".")[2] for path in inputs]
    if inputs and TEXT_NAMES[0] not in names:
        path = next((inputs[names.index(name)] for name in TEXT_NAMES if name in names), inputs[0])
        yield f'inputs={{"{TEXT_NAMES[0]}": "{path}"}}'


def _inputs(tree: ast.Module, method: Method) -> Iterator[str]:
    """Paths of the method's inputs: its parameters, or the fields of a parameter whose class is in this source."""
    for parameter in [*method.args.posonlyargs, *method.args.args, *method.args.kwonlyargs]:
        if parameter.arg in ("self", "ctx", "context"):
            continue
        kind = parameter.annotation.id if isinstance(parameter.annotation, ast.Name) else None
        fields = fields_of_class(tree, kind) if kind is not None else []
        yield from ([f"{parameter.arg}.{field}" for field in fields] or [parameter.arg])


def _line_after_imports(tree: ast.Module) -> int:
    """The last line of the imports at the top, or of the docstring where there are none."""
    last = 0
    for position, node in enumerate(tree.body):
        docstring = position == 0 and isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if not docstring and not isinstance(node, (ast.Import, ast.ImportFrom)):
            break
        last = node.end_lineno or last
    return last


def _insert(lines: list[str], number: int, text: str) -> None:
    """Makes ``text`` the line of that number, with the line ending that the file has."""
    ending = "\r\n" if lines and lines[0].endswith("\r\n") else "\n"
    lines.insert(number - 1, text + ending)


def _complete_class(lines: list[str], service: ast.ClassDef, config: str) -> None:
    """``class X(Y):`` becomes ``class X(AuditMixin, Y, config="..."):``; the line breaks stay where they are."""
    keyword = f'config="{config}"'
    arguments = [*service.bases, *(word.value for word in service.keywords)]
    if arguments:
        last = max(arguments, key=lambda node: (node.end_lineno or 0, node.end_col_offset or 0))
        _insert_at(lines, last.end_lineno or 0, last.end_col_offset or 0, f", {keyword}")
    number = service.lineno - 1
    line = lines[number]
    found = re.search(rf"class\s+{re.escape(service.name)}\s*(\([ \t]*)?", line)
    assert found is not None  # the parser has seen a class statement on this line
    head, rest = line[: found.end()].rstrip(), line[found.end() :]
    if arguments:
        lines[number] = f"{head}{MIXIN},{' ' if rest.strip() else ''}{rest}"
    elif found.group(1) is not None:
        lines[number] = f"{head}{MIXIN}, {keyword}{rest}"
    else:
        lines[number] = f"{head}({MIXIN}, {keyword}){rest}"


def _insert_at(lines: list[str], number: int, byte_offset: int, text: str) -> None:
    # The parser counts bytes of UTF-8, not characters.
    line = lines[number - 1].encode()
    lines[number - 1] = (line[:byte_offset] + text.encode() + line[byte_offset:]).decode()
