"""What the command line writes: results to standard output, progress and remarks to standard error."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

SECONDS_BETWEEN_LINES = 15.0
"""Where standard error is no terminal, a long stage writes one line this often instead of a bar."""


def output_console() -> Console:
    """A console for results; a new one each time, so that it follows a redirected standard output."""
    return Console(highlight=False)


def error_console() -> Console:
    """The console for progress, remarks and errors."""
    return Console(stderr=True, highlight=False)


def remark(message: str) -> None:
    """Writes one line of plain text to standard error."""
    error_console().print(escape(message), soft_wrap=True)


def print_json(value: Any) -> None:
    """Writes ``value`` to standard output as JSON and nothing else."""
    print(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


def facts(rows: dict[str, object]) -> Table:
    """A table of two columns, name and value, without lines; values of None are left out, and ``Text`` has its styles."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for name, value in rows.items():
        if value is not None:
            table.add_row(name, value if isinstance(value, Text) else escape(str(value)))
    return table


def duration(seconds: float) -> str:
    """Seconds as people say them: ``0.4 s``, ``12 s``, ``3 min 20 s``, ``2 h 5 min``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 90:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def size(byte_count: float) -> str:
    """Bytes as people say them, in powers of 1000: ``950 kB``, ``23 MB``, ``1.4 GB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if byte_count < 1000:
            return f"{byte_count:.0f} {unit}" if unit != "GB" else f"{byte_count:.1f} {unit}"
        byte_count /= 1000
    return f"{byte_count:.1f} TB"


class _Bars:
    """Draws one bar a stage on a terminal."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._bars: dict[str, TaskID] = {}

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        if stage not in self._bars:
            self._bars[stage] = self._progress.add_task(escape(stage), total=total, note="")
        self._progress.update(self._bars[stage], completed=done, total=total, note=escape(note))


class _Lines:
    """Writes a line when a stage ends, and now and then while a long one goes on; for logs and pipes."""

    def __init__(self) -> None:
        self._began: dict[str, float] = {}
        self._written: dict[str, float] = {}

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        now = time.monotonic()
        began = self._began.setdefault(stage, now)
        last = self._written.setdefault(stage, now)
        remark_after = f", {note}" if note else ""
        if done >= total:
            if last != float("inf"):
                remark(f"{stage}: done in {duration(now - began)}{remark_after}")
                self._written[stage] = float("inf")
        elif now - last >= SECONDS_BETWEEN_LINES:
            left = f", {duration((now - began) * (total - done) / done)} left" if done and "left" not in note else ""
            remark(f"{stage}: {done / total:.0%}{left}{remark_after}")
            self._written[stage] = now


@contextlib.contextmanager
def progress_shown() -> Iterator[_Bars | _Lines]:
    """Yields an ``influence_engine.progress.Progress`` that shows how far work is and how long the rest will take."""
    console = error_console()
    if not console.is_terminal:
        yield _Lines()
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("[dim]{task.fields[note]}"),
    )
    with Progress(*columns, console=console) as bars:
        yield _Bars(bars)
