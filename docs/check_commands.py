"""Runs the commands that README.md and the pages of this folder show, in their order, in an empty copy.

    python docs/check_commands.py --list          what is run, and what is not and why
    python docs/check_commands.py                 runs it, which is long; what `make docs-check` does
    python docs/check_commands.py --benchmarks    those of benchmarks/, too: most of a day

The copy is a clone of HEAD in a temporary folder; its first `make` installs an environment there. The first command
that fails ends the run with its exit code. That every command can be parsed is a test (tests/project).
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from audit_service.cli.group import main as bento_audit

PROJECT = Path(__file__).resolve().parents[1]
LANGUAGES = ("bash", "console", "sh", "shell")
FILES = (".csv", ".json", ".jsonl", ".parquet", ".py", ".yaml", ".yml")
OWN_RUNS = ("bench", "clean", "docs-check", "drift-check", "test")
"""Targets of make that are runs of their own, and one that deletes what the others need."""


@dataclass(frozen=True)
class Shown:
    """A command that a document shows.

    Attributes:
        where: Document and line.
        words: Of the command, as a shell would pass them, without variables and ``time`` before it.
        environment: Variables that stand before it.
    """

    where: str
    words: tuple[str, ...]
    environment: tuple[tuple[str, str], ...] = ()

    @property
    def benchmark(self) -> str | None:
        """The benchmark's file, if it is one."""
        is_one = len(self.words) > 1 and self.words[0] == "python" and self.words[1].startswith("benchmarks/")
        return self.words[1] if is_one else None

    @property
    def is_ours(self) -> bool:
        """Whether it is one of this project's, and not of the shell."""
        return self.words[0] in ("bento-audit", "make") or self.benchmark is not None

    def __str__(self) -> str:
        return " ".join([*(f"{name}={shlex.quote(value)}" for name, value in self.environment), shlex.join(self.words)])


# What the documents show


def documents() -> list[Path]:
    """README.md first, then the pages by name."""
    return [PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md"))]


def commands_of(document: Path) -> list[Shown]:
    """This project's commands in the fenced blocks of a document.

    Raises:
        ValueError: a quotation mark is missing; the message says where.
    """
    found = []
    for number, line in _lines(document.read_text(encoding="utf-8")):
        where = f"{document.relative_to(PROJECT) if document.is_relative_to(PROJECT) else document}:{number}"
        found += [one for one in _commands(line, where) if one.is_ours]
    return found


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines of fenced blocks of a shell with their numbers; those that end with a backslash go on in the next."""
    language: str | None = None
    begun, parts = 0, []
    for number, line in enumerate(text.splitlines(), 1):
        if fence := re.match(r"\s*```(\w*)", line):
            language = fence[1] if language is None else None
        elif language in LANGUAGES:
            begun = begun if parts else number
            parts.append(line.removeprefix("$ ").removesuffix("\\"))
            if not line.endswith("\\"):
                yield begun, " ".join(parts)
                parts = []


def _commands(line: str, where: str) -> Iterator[Shown]:
    """The commands of one line, which may be joined by ``&&``, ``;`` or ``|``; what follows ``>`` is left out."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    try:
        words = list(lexer)
    except ValueError as error:
        raise ValueError(f"{where}: {line!r} is no command: {error}") from error
    command: list[str] = []
    for word in [*words, ";"]:
        if not set(word) <= set("();<>|&"):
            command.append(word)
            continue
        yield from _command(command, where)
        command = ["", "redirected"] if set(word) <= set("<>") else []


def _command(words: list[str], where: str) -> Iterator[Shown]:
    environment = []
    while words and (words[0] == "time" or re.fullmatch(r"[A-Z_]+=.*", words[0])):
        name, given, value = words.pop(0).partition("=")
        environment += [(name, value)] if given else []
    if words and words[0]:
        yield Shown(where, tuple(words), tuple(environment))


# What cannot be run


def verb_of(words: Sequence[str]) -> tuple[click.Command, click.Context, list[str]]:
    """The command that ``bento-audit ...`` calls, the context it stands in, and its arguments, unparsed.

    Raises:
        click.UsageError: there is no such verb.
    """
    command: click.Command = bento_audit
    context, rest = click.Context(bento_audit, info_name=words[0]), list(words[1:])
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        name, found, rest = command.resolve_command(context, rest)
        assert found is not None  # an unknown one has been refused
        command, context = found, click.Context(found, parent=context, info_name=name)
    return command, context, rest


def why_left_out(shown: Shown, made: set[str], *, benchmarks: bool) -> str | None:
    """Why a command is not run in the copy; ``None`` where it is. What it writes is added to ``made``."""
    if shown.benchmark is not None:
        return None if benchmarks else "a measurement: --benchmarks runs it, and so does `make bench`"
    if shown.words[0] == "make":
        targets = [word for word in shown.words[1:] if "=" not in word]
        if own := [target for target in targets if target in OWN_RUNS]:
            return f"make {own[0]} is a run of its own"
        return None if any(word.startswith("CHECK=") for word in shown.words) else "it serves until it is stopped"
    command, context, rest = verb_of(shown.words)
    given: dict[str, Any] = command.make_parser(context).parse_args(list(rest))[0]
    if command.name in ("demo", "watch") and not given.get("check"):
        return "it serves until it is stopped"
    config = given.get("config")
    if isinstance(config, str) and not (PROJECT / "configs" / f"{config}.yaml").is_file():
        return f"{config} is the reader's own"
    for before, word in itertools.pairwise(rest):
        if before == "--out":
            made.add(word)
    absent = [word for word in rest if word.endswith(FILES) and word not in made and not (PROJECT / word).exists()]
    return f"{absent[0]} is the reader's own" if absent else None


# Running the others


def run(shown: Shown, copy: Path) -> int:
    """Runs a command in the copy; returns its exit code."""
    # Variables of the make that called this one are not those of the make that is called.
    environment = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "VENV")}
    environment |= {"PATH": f"{copy / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}", **dict(shown.environment)}
    environment.pop("PYTHONPATH", None)  # the copy's code, not what calls this
    return subprocess.run(shown.words, cwd=copy, env=environment).returncode


def parser() -> argparse.ArgumentParser:
    """The options."""
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--list", action="store_true", help="only say what would be run, and what not and why")
    found.add_argument("--benchmarks", action="store_true", help="run the commands of benchmarks/ as well")
    return found


def main() -> int:
    """Lists, or runs."""
    options = parser().parse_args()
    made: set[str] = set()
    chosen: dict[str, Shown] = {}
    for shown in (one for document in documents() for one in commands_of(document)):
        reason = why_left_out(shown, made, benchmarks=options.benchmarks)
        again = chosen.get(str(shown))
        if reason is None and again is not None:
            reason = f"the same as in {again.where}"
        print(f"{'run ' if reason is None else 'skip'}  {shown.where}  {shown}{f'  ({reason})' if reason else ''}")
        if reason is None:
            chosen[str(shown)] = shown
    if options.list:
        return 0
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name) / "copy"
        subprocess.run(["git", "clone", "--quiet", str(PROJECT), str(copy)], check=True)
        for shown in chosen.values():
            print(f"\n== {shown.where}: {shown}\n", flush=True)
            began = time.monotonic()
            code = run(shown, copy)
            print(f"\n== exit code {code} after {time.monotonic() - began:.0f} s", flush=True)
            if code:
                return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
