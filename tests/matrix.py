"""Runs the quick tests with the oldest and the newest supported BentoML, transformers and torch: ``make matrix``.

Each entry has a virtual environment of its own below ``build/matrix``: about two gigabytes, more where pip finds only
a CUDA build of torch. What is done is kept: an interrupted call goes on with the part of the tests that it was at, and
environments are made again only when ``pyproject.toml`` or the versions to be had have changed. Where a declared
version cannot be installed here, the next one that can takes its place, and the table says so.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
import time
import tomllib
import venv
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from packaging.requirements import Requirement
from packaging.version import InvalidVersion, Version
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "build" / "matrix"
PACKAGES = ("bentoml", "transformers", "torch")
QUICK = "not service and not slow"
COUNTS = re.compile(r"(\d+) (passed|failed|error|errors|skipped)")
NOTHING_TO_RUN = 5
"""pytest's exit status where no test was chosen."""

End = Literal["oldest", "newest"]

ENTRIES: dict[str, dict[str, End]] = {
    "oldest": dict.fromkeys(PACKAGES, "oldest"),
    "newest": dict.fromkeys(PACKAGES, "newest"),
    **{f"{package}-{end}": {package: end} for package in PACKAGES for end in ("oldest", "newest")},
}
"""By name, which packages are at which end of their range; pip chooses the others."""

USUAL = ("oldest", "newest")
"""The entries that are run where none is named."""


@dataclass
class Chosen:
    """A version that an entry is run with.

    Attributes:
        version: The version.
        passed_over: Versions nearer to the end of the range that cannot be installed here.
    """

    version: str
    passed_over: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        missing = f" (not to be had: {', '.join(self.passed_over)})" if self.passed_over else ""
        return f"{self.version}{missing}"


@dataclass
class Outcome:
    """What is known of an entry; stored after every step.

    Attributes:
        versions: The versions at an end of their range, by package.
        of: Digest of the code that the parts were run on.
        parts: By part of the tests, counts by ``passed``, ``failed``, ``skipped``, the exit ``status`` and ``seconds``.
        problem: Why there is no environment; empty where there is one.
    """

    versions: dict[str, Chosen] = field(default_factory=dict)
    of: str = ""
    parts: dict[str, dict[str, float]] = field(default_factory=dict)
    problem: str = ""

    @classmethod
    def read(cls, path: Path) -> Outcome:
        """What an earlier call stored; nothing where there was none."""
        if not path.is_file():
            return cls()
        stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        versions = {name: Chosen(**chosen) for name, chosen in stored.pop("versions").items()}
        return cls(versions=versions, **stored)

    def write(self, path: Path) -> None:
        """Stores it, whole or not at all."""
        aside = path.with_suffix(".partial")
        aside.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")
        aside.replace(path)

    def count(self, what: str) -> int:
        """Tests that ``passed``, ``failed`` or were ``skipped``, over all parts."""
        return int(sum(part.get(what, 0) for part in self.parts.values()))

    @property
    def well(self) -> bool:
        """Whether every part was run and none failed."""
        return not self.problem and bool(self.parts) and all(part["status"] == 0 for part in self.parts.values())


def declared() -> dict[str, Requirement]:
    """The project's requirements, by package."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return {requirement.name: requirement for requirement in map(Requirement, project["dependencies"])}


def within(requirement: Requirement, listed: str, end: End) -> list[str]:
    """Released versions of a range, those nearest to its end first.

    Args:
        requirement: The package and its range.
        listed: What ``pip index versions`` printed.
        end: Which end.
    """
    line = next((line for line in listed.splitlines() if line.startswith("Available versions:")), ":")
    found = set()
    for text in line.partition(":")[2].split(","):
        try:
            version = Version(text.strip())
        except InvalidVersion:
            continue
        if requirement.specifier.contains(version, prereleases=False):
            found.add(Version(version.public))  # builds of one version count once; pip prefers the one that it knows
    return [str(version) for version in sorted(found, reverse=end == "newest")]


def choose(requirement: Requirement, end: End, pip: Sequence[str]) -> Chosen | None:
    """The version nearest to an end of a range that pip can get here; None where it can get none."""
    listed = subprocess.run([*pip, "index", "versions", requirement.name], capture_output=True, text=True)
    chosen = Chosen("")
    for version in within(requirement, listed.stdout, end):
        asked = [*pip, "install", "--dry-run", "--quiet", "--ignore-installed", "--no-deps"]
        if subprocess.run([*asked, f"{requirement.name}=={version}"], capture_output=True).returncode == 0:
            chosen.version = version
            return chosen
        chosen.passed_over.append(version)
    return None


def parts_of_the_tests() -> list[str]:
    """Folders and files of tests that are run by themselves, so that an interruption costs one of them."""
    found = []
    for package in ("tests/influence_engine", "tests/audit_service"):
        inside = sorted((ROOT / package).iterdir())
        found += [each.relative_to(ROOT).as_posix() for each in inside if any(each.rglob("test_*.py"))]
        found += [each.relative_to(ROOT).as_posix() for each in inside if each.match("test_*.py")]
    # Style and types are the same with all versions, or said of the pinned ones only.
    return [*found, "tests/tasks", "tests/project --ignore tests/project/test_code_quality.py"]


def code_digest() -> str:
    """Digest of the code in the working tree: of its commit, and of what has changed since."""
    state = [["git", "rev-parse", "HEAD"], ["git", "diff", "HEAD"]]
    said = [subprocess.run(command, cwd=ROOT, capture_output=True).stdout for command in state]
    return hashlib.sha256(b"\0".join(said)).hexdigest()


class Entry:
    """One entry of the matrix: its folder, environment and outcome.

    Args:
        name: One of ``ENTRIES``.
        folder: Where environments and outcomes are kept.
        pip_args: Further arguments of ``pip install``.
        workers: Files of tests at a time.
    """

    def __init__(self, name: str, folder: Path, pip_args: Sequence[str] = (), *, workers: int = 2) -> None:
        self.name = name
        self._workers = workers
        self.folder = folder / name
        self.folder.mkdir(parents=True, exist_ok=True)
        self._pip_args = list(pip_args)
        self._stored = self.folder / "outcome.json"
        self._log = self.folder / "log.txt"
        self.outcome = Outcome.read(self._stored)
        self.outcome.problem = ""

    @property
    def python(self) -> Path:
        """The environment's interpreter."""
        return self.folder / "venv" / "bin" / "python"

    def run(self, parts: Sequence[str], *, again: bool = False) -> None:
        """Makes the environment where it is not there, and runs the parts that have not been run on this code."""
        self._choose_versions()
        if not self.outcome.problem:
            self._install()
        now = code_digest()
        if again or self.outcome.of != now:
            self.outcome.of, self.outcome.parts = now, {}
        if not self.outcome.problem:
            for part in parts:
                if part not in self.outcome.parts:
                    self._test(part)
        self._store()

    def _choose_versions(self) -> None:
        requirements = declared()
        self.outcome.versions = {}
        for package, end in ENTRIES[self.name].items():
            say(f"{self.name}: {package}, {end} of {requirements[package].specifier}")
            pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
            chosen = choose(requirements[package], end, pip)
            if chosen is None:
                self.outcome.problem = f"pip can get no {requirements[package]} here"
                return
            self.outcome.versions[package] = chosen
            say(f"{self.name}: {package} {chosen}")

    def _install(self) -> None:
        pins = [f"{package}=={chosen.version}" for package, chosen in self.outcome.versions.items()]
        wanted = json.dumps({"pins": pins, "project": (ROOT / "pyproject.toml").read_text(), "python": sys.version})
        stamp = self.folder / "installed.json"
        if stamp.is_file() and stamp.read_text() == wanted:
            return
        stamp.unlink(missing_ok=True)
        say(f"{self.name}: installing bento-audit[dev] with {', '.join(pins)} ...")
        venv.create(self.folder / "venv", clear=True, with_pip=True)
        install = [str(self.python), "-m", "pip", "install", "--no-compile", "--quiet", "--disable-pip-version-check"]
        said = self._logged([*install, *self._pip_args, "-e", f"{ROOT}[dev]", *pins])
        if said.returncode != 0:
            self.outcome.problem = next(reversed(said.stdout.strip().splitlines()), "pip failed")
            return
        stamp.write_text(wanted)

    def _test(self, part: str) -> None:
        say(f"{self.name}: {part} ...")
        began = time.monotonic()
        command = [str(self.python), "-m", "pytest", "-q", "-ra", "-m", QUICK, "-n", str(self._workers)]
        said = self._logged([*command, "--dist", "loadfile", *shlex.split(part)])
        counts: dict[str, float] = {"passed": 0, "failed": 0, "skipped": 0}
        last = next((line for line in reversed(said.stdout.splitlines()) if COUNTS.search(line)), "")
        for count, what in COUNTS.findall(last):
            counts["failed" if what.startswith("error") else what] += int(count)
        status = 0 if said.returncode == NOTHING_TO_RUN else said.returncode
        self.outcome.parts[part] = {**counts, "status": status, "seconds": time.monotonic() - began}
        say(f"{self.name}: {part}: {last.strip('= ') or f'exit status {said.returncode}'}")
        self._store()

    def _logged(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """Runs a command in the project's folder; what it says is added to the entry's log."""
        environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)  # each of many processes would compile torch again
        said = subprocess.run(
            command,
            cwd=ROOT,
            env={**environment, "BENTOML_DO_NOT_TRACK": "True"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        with self._log.open("a", encoding="utf-8") as log:
            log.write(f"$ {shlex.join(command)}\n{said.stdout}\n")
        return said

    def _store(self) -> None:
        self.outcome.write(self._stored)


def table(entries: Sequence[Entry]) -> Table:
    """What came out, one row an entry."""
    shown = Table("entry", "versions", "passed", "failed", "skipped", "minutes", "outcome")
    for entry in entries:
        outcome = entry.outcome
        seconds = sum(part["seconds"] for part in outcome.parts.values())
        bad = [name for name, part in outcome.parts.items() if part["status"] != 0]
        said = outcome.problem or (
            f"failed: {', '.join(bad)}" if bad else "well" if outcome.well else "nothing was run"
        )
        shown.add_row(
            entry.name,
            "\n".join(f"{package} {chosen}" for package, chosen in outcome.versions.items()),
            *(str(outcome.count(what)) for what in ("passed", "failed", "skipped")),
            f"{seconds / 60:.1f}",
            said,
        )
    return shown


def say(message: str) -> None:
    """Writes a line to standard error."""
    print(message, file=sys.stderr, flush=True)


def logs_of_failures(entries: Sequence[Entry]) -> Iterator[str]:
    """Where to read what went wrong."""
    for entry in entries:
        if not entry.outcome.well:
            yield f"{entry.name}: see {(entry.folder / 'log.txt').relative_to(ROOT)}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the entries that are asked for; 0 where all of their tests passed, else 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=list(ENTRIES), help="an entry; by default oldest and newest")
    parser.add_argument("--tests", help="pytest's arguments for one part, in place of all quick tests")
    parser.add_argument("--pip-args", default="", help="further arguments of pip install")
    parser.add_argument("--workers", type=int, default=2, help="files of tests at a time")
    parser.add_argument("--again", action="store_true", help="run tests again that were run on this code")
    asked = parser.parse_args(arguments)
    parts = [asked.tests] if asked.tests else parts_of_the_tests()
    pip_args, chosen = shlex.split(asked.pip_args), dict.fromkeys(asked.only or USUAL)
    entries = [Entry(name, FOLDER, pip_args, workers=asked.workers) for name in chosen]
    for entry in entries:
        entry.run(parts, again=asked.again)
    Console(width=140).print(table(entries))
    for line in logs_of_failures(entries):
        say(line)
    return 0 if all(entry.outcome.well for entry in entries) else 1


if __name__ == "__main__":
    sys.exit(main())
