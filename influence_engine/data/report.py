"""``DataReport`` on a source: rows that cannot be used, duplicates, conflicting targets."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from influence_engine.digests import json_digest

SHOWN = 20
"""Most bad rows, and most groups of duplicates, that are listed; all are counted."""


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used, and why."""

    line: int
    problem: str


@dataclass(frozen=True)
class Repeats:
    """Inputs that occur more than once.

    Attributes:
        count: How many such inputs there are.
        rows: How many rows hold them.
        lines: The lines of the rows of each, for the first ``SHOWN`` inputs.
    """

    count: int
    rows: int
    lines: list[list[int]]


@dataclass(frozen=True)
class DataReport:
    """The report on a data set and its source.

    Attributes:
        source: Name of the source.
        unit: What line numbers count: ``line`` or ``row``.
        rows: Rows read.
        kept: Examples in the data set: usable, in the part, in the sample.
        bad_count: Rows that cannot be used.
        bad_rows: The first ``SHOWN`` rows that cannot be used.
        duplicates: Inputs that occur several times with the same target, among the examples kept.
        conflicts: Inputs that occur with different targets, among the examples kept.
        targets: Number of examples kept by target, where targets are names.
    """

    source: str
    unit: str
    rows: int
    kept: int
    bad_count: int
    bad_rows: list[BadRow]
    duplicates: Repeats
    conflicts: Repeats
    targets: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """The report as a JSON value."""
        return asdict(self)

    def summary(self) -> str:
        """The report in a few lines for people."""
        targets = ", ".join(f"{count:,} {name}" for name, count in self.targets.items())
        lines = [f"{self.source}: {self.kept:,} of {self.rows:,} rows kept" + (f" ({targets})" if targets else "")]
        if self.bad_count:
            lines.append(f"{plural(self.bad_count, 'row')} left out:")
            lines += bad_row_lines(self.bad_rows, self.bad_count, self.unit)
        for repeats, what in ((self.duplicates, "exact duplicates"), (self.conflicts, "conflicting targets")):
            if repeats.count:
                where = "; ".join(", ".join(map(str, group)) for group in repeats.lines[:3])
                more = "; ..." if repeats.count > 3 else ""
                lines.append(
                    f"{what}: {plural(repeats.count, 'input')} in {repeats.rows:,} rows ({self.unit}s {where}{more})"
                )
        return "\n".join(lines)


def plural(count: int, noun: str) -> str:
    """A count with its noun: ``1 row``, ``2,000 rows``."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def bad_row_lines(bad_rows: Sequence[BadRow], count: int, unit: str) -> list[str]:
    """One indented line for each of the first problems, with the rows that have it, and how many more rows there are.

    Args:
        bad_rows: Rows and their problems; not all, perhaps.
        count: How many bad rows there are.
        unit: What line numbers count.
    """
    by_problem: dict[str, list[int]] = defaultdict(list)
    for bad in bad_rows:
        by_problem[bad.problem].append(bad.line)
    shown = list(by_problem.items())[:SHOWN]
    lines = [f"  {_places(places, unit)}: {problem}" for problem, places in shown]
    left = count - sum(len(places) for _, places in shown)
    return [*lines, f"  ... and {left:,} more"] if left else lines


def _places(places: Sequence[int], unit: str) -> str:
    if len(places) == 1:
        return f"{unit} {places[0]}"
    named = ", ".join(map(str, places[:3]))
    return f"{len(places):,} {unit}s ({named}{' ...' if len(places) > 3 else ''})"


def find_repeats(
    examples: Sequence[Mapping[str, Any]], lines: Sequence[int], fields: Sequence[str], target: str
) -> tuple[Repeats, Repeats]:
    """Exact duplicates, and inputs with conflicting targets.

    Args:
        examples: The examples.
        lines: The examples' lines in the source.
        fields: The task's fields; all but ``target`` are the input.
        target: The field with the target.
    """
    inputs = [field for field in fields if field != target]
    by_input: dict[str, list[int]] = defaultdict(list)
    for number, example in enumerate(examples):
        by_input[json_digest([example[field] for field in inputs])].append(number)
    groups = [numbers for numbers in by_input.values() if len(numbers) > 1]
    conflicting: list[list[int]] = []
    duplicated: list[list[int]] = []
    for numbers in groups:
        found = Counter(json_digest(examples[number].get(target)) for number in numbers)
        (conflicting if len(found) > 1 else duplicated).append([lines[number] for number in numbers])
    return _repeats(duplicated), _repeats(conflicting)


def _repeats(groups: list[list[int]]) -> Repeats:
    return Repeats(count=len(groups), rows=sum(map(len, groups)), lines=groups[:SHOWN])


def count_targets(examples: Sequence[Mapping[str, Any]], target: str) -> dict[str, int]:
    """Numbers of examples by target, the most frequent first; empty where targets are not names."""
    counts = Counter(example[target] for example in examples if isinstance(example.get(target), str))
    return dict(counts.most_common())
