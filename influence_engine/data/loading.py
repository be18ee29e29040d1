"""Loads a data set: reads the source that settings name, checks its rows, and selects the examples."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from influence_engine.data.report import (
    SHOWN,
    BadRow,
    DataReport,
    bad_row_lines,
    count_targets,
    find_repeats,
    plural,
)
from influence_engine.data.row_parsing import Builder
from influence_engine.data.selection import part_of, sample
from influence_engine.data.settings import DataSettings
from influence_engine.data.sources import Table, open_table
from influence_engine.digests import json_digest
from influence_engine.errors import DataError
from influence_engine.names import did_you_mean, listing
from influence_engine.progress import Progress, silent


@dataclass(frozen=True)
class DataSet:
    """Examples with their digest and a report of what was found while they were read.

    Attributes:
        examples: Mappings with ``example_id``, the task's fields, ``source``, ``licence``, ``consent``, ``metadata``.
        digest: ``rows_digest`` of the examples.
        report: Bad rows, duplicates, conflicts, targets.
    """

    examples: list[dict[str, Any]]
    digest: str
    report: DataReport

    def __len__(self) -> int:
        return len(self.examples)


def load_examples(
    settings: DataSettings,
    task: object,
    base_folder: str | os.PathLike[str] = ".",
    *,
    progress: Progress = silent,
) -> DataSet:
    """Reads, checks and selects the examples of one source, in the order of the source.

    Args:
        settings: The source, its columns, and which examples to select.
        task: Says which fields examples have and checks them, as far as it can; None for one that does neither.
        base_folder: The project; relative paths are below it, and packages are fetched to ``data`` in it.
        progress: Called while a package is fetched.

    Raises:
        DataError: the source cannot be read, a column is missing, there are bad rows (listed with their lines) and
            ``on_bad_rows`` is ``stop``, or nothing is left.
    """
    table = open_table(settings, Path(base_folder), progress)
    unreadable = [BadRow(row.line, row.problem) for row in table.rows if row.problem is not None]
    if len(unreadable) == len(table.rows):
        # First, since a file of which nothing can be read has no columns to miss.
        raise DataError(_nothing_left(table, 0, unreadable, settings), field=settings.kind)
    builder = Builder.for_table(table, settings, task)
    lines, examples, bad_rows = _build_all(table, builder, settings)
    if bad_rows and settings.on_bad_rows == "stop":
        raise _refusal(table, bad_rows, settings)
    chosen = _chosen([example["example_id"] for example in examples], settings)
    kept = [(line, example) for line, example in zip(lines, examples, strict=True) if example["example_id"] in chosen]
    if not kept:
        raise DataError(_nothing_left(table, len(examples), bad_rows, settings), field=settings.kind)
    kept_lines = [line for line, _ in kept]
    kept_examples = [example for _, example in kept]
    duplicates, conflicts = find_repeats(kept_examples, kept_lines, list(builder.fields), builder.target)
    report = DataReport(
        source=table.name,
        unit=table.unit,
        rows=len(table.rows),
        kept=len(kept_examples),
        bad_count=len(bad_rows),
        bad_rows=bad_rows[:SHOWN],
        duplicates=duplicates,
        conflicts=conflicts,
        targets=count_targets(kept_examples, builder.target),
    )
    return DataSet(examples=kept_examples, digest=rows_digest(kept_examples), report=report)


def rows_digest(examples: Iterable[Mapping[str, Any]]) -> str:
    """SHA-256 over the canonical form of every example, in ``example_id`` order; their own order does not matter."""
    digest = hashlib.sha256()
    for row in sorted((example["example_id"], json_digest(example)) for example in examples):
        digest.update(f"{row[1]}\n".encode("ascii"))
    return digest.hexdigest()


def _build_all(
    table: Table, builder: Builder, settings: DataSettings
) -> tuple[list[int], list[dict[str, Any]], list[BadRow]]:
    """Lines and examples of the part's usable rows, and its bad rows. Of rows with one id, the first is usable.

    Rows of other parts are not looked at further: a check may read a file for each.
    """
    part_by = _part_column(table, settings)
    first_lines: dict[str, int] = {}
    examples = []
    bad_rows = []
    for row in table.rows:
        try:
            if settings.part is not None and part_of(builder.part_key(row, part_by)) != settings.part:
                continue
            example = builder.build(row)
        except DataError as error:
            bad_rows.append(BadRow(row.line, error.message))
            continue
        first = first_lines.setdefault(example["example_id"], row.line)
        if first != row.line:
            problem = f"the id {example['example_id']!r} is that of {table.unit} {first} already"
            bad_rows.append(BadRow(row.line, problem))
            continue
        examples.append(example)
    return list(first_lines.values()), examples, bad_rows


def _part_column(table: Table, settings: DataSettings) -> str | None:
    """The column that parts are drawn by; ``None`` where each example is drawn by its id."""
    column = settings.part_by or table.part_by
    if column is not None and column not in table.columns:
        raise DataError(
            f"{table.location}: part_by names the column {column!r}, which is not there. The columns are "
            f"{listing(table.columns)}.{did_you_mean(column, table.columns)}",
            field="part_by",
        )
    return column


def _chosen(example_ids: list[str], settings: DataSettings) -> set[str]:
    return sample(example_ids, settings.limit, settings.seed) if settings.limit is not None else set(example_ids)


def _refusal(table: Table, bad_rows: list[BadRow], settings: DataSettings) -> DataError:
    lines = [
        f"{table.location}: {len(bad_rows):,} of {plural(len(table.rows), 'row')} cannot be used:",
        *bad_row_lines(bad_rows, len(bad_rows), table.unit),
        "Correct them, or set `on_bad_rows: drop` to leave them out.",
    ]
    if settings.labels is None and any("unknown label" in bad.problem for bad in bad_rows):
        lines.append(
            "If the labels are only spelt otherwise, map them beside the source's columns: `labels: {theirs: ours}`, "
            "in a config under data.train, data.validation or data.test."
        )
    return DataError("\n".join(lines), field=settings.kind)


def _nothing_left(table: Table, usable: int, bad_rows: list[BadRow], settings: DataSettings) -> str:
    if not table.rows:
        return f"{table.location} has no rows"
    if settings.part is not None and not usable and not bad_rows:
        return f"{table.location}: none of its {plural(len(table.rows), 'row')} is in the part {settings.part!r}"
    found = "\n".join(bad_row_lines(bad_rows, len(bad_rows), table.unit))
    return f"{table.location}: none of its {plural(len(table.rows), 'row')} can be used:\n{found}"
