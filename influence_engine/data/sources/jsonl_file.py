"""Rows of a file with one JSON object a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

from influence_engine.data.sources.table import Row, Table, require_file, unicode_problem

BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def read_jsonl(path: Path, *, name: str) -> Table:
    """Reads a JSON Lines file in UTF-8. Blank lines are skipped.

    The columns are all keys that any line has. A line that is not UTF-8, not JSON or not an object becomes a row with
    a problem.

    Raises:
        DataError: there is no such file.
    """
    require_file(path, key="jsonl")
    rows = []
    # Read as bytes, since only a line feed ends a line here: text mode would also break at a carriage return.
    with path.open("rb") as file:
        for line, content in enumerate(file, start=1):
            content = content.removeprefix(BYTE_ORDER_MARK) if line == 1 else content
            if content.strip():
                rows.append(_row(line, content))
    columns = list(dict.fromkeys(column for row in rows for column in row.values))
    return Table(name=name, location=str(path), unit="line", columns=columns, rows=rows)


def _row(line: int, content: bytes) -> Row:
    try:
        value = json.loads(content.decode("utf-8"), parse_constant=_refuse)
    except UnicodeDecodeError as error:
        return Row(line=line, problem=f"is not UTF-8: byte 0x{content[error.start]:02x} after {error.start} bytes")
    except json.JSONDecodeError as error:
        return Row(line=line, problem=f"is not JSON: {error.msg} at character {error.pos + 1}")
    except (ValueError, RecursionError) as error:
        return Row(line=line, problem=f"is not JSON: {error}")
    if not isinstance(value, dict):
        return Row(line=line, problem=f"is not a JSON object but {_kind(value)}")
    return Row(line=line, values=value, problem=unicode_problem(value))


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON number")


def _kind(value: Any) -> str:
    names = {list: "an array", str: "a string", bool: "true or false", int: "a number", float: "a number"}
    return names.get(type(value), "null")
