"""Every command that README.md and docs/ show in a fenced block can be parsed: verbs, options, targets, benchmarks."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest

ROOT = Path(__file__).resolve().parents[2]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


check = _module(ROOT / "docs" / "check_commands.py")
SHOWN = [one for document in check.documents() for one in check.commands_of(document)]
VERBS = [one for one in SHOWN if one.words[0] == "bento-audit"]
TARGETS = [one for one in SHOWN if one.words[0] == "make"]
BENCHMARKS = [one for one in SHOWN if one.benchmark]


def parsed(words: tuple[str, ...]) -> None:
    """Reads a command line of bento-audit as click would before it calls the verb."""
    command, context, rest = check.verb_of(words)
    assert not isinstance(command, click.Group) or rest, f"{words[-1]} is a group of verbs: which?"
    with contextlib.suppress(click.exceptions.Exit):  # --help
        command.make_context(command.name, rest, parent=context.parent)


@pytest.mark.parametrize("shown", VERBS, ids=str)
def test_verbs_and_options_shown_are_those_that_there_are(
    shown: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Options that must name a file find it; what is in it is not looked at here.
    monkeypatch.chdir(tmp_path)
    for word in shown.words:
        name = word.removeprefix("@")
        if name.endswith(check.FILES) and not Path(name).is_absolute():
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            Path(name).write_text("{}", encoding="utf-8")

    try:
        parsed(shown.words)
    except click.ClickException as error:
        pytest.fail(f"{shown.where}: {shown}: {error.format_message()}")


@pytest.mark.parametrize("shown", TARGETS, ids=str)
def test_targets_and_variables_shown_are_in_the_makefile(shown: Any) -> None:
    targets = [word for word in shown.words[1:] if "=" not in word]
    variables = [word.partition("=")[0] for word in shown.words[1:] if "=" in word]

    for target in targets:
        assert re.search(rf"^{re.escape(target)}:", MAKEFILE, flags=re.MULTILINE), f"{shown.where}: {target}"
    for variable in variables:
        assert re.search(rf"^{variable} \?=", MAKEFILE, flags=re.MULTILINE), f"{shown.where}: {variable}"


# All in one process of their own: torch is imported once, and the names of their modules are nobody else's.
PARSE_ALL = """
import contextlib, io, json, runpy, sys
sys.path.insert(0, "benchmarks")
parsers, refused = {}, {}
for where, script, *arguments in json.loads(sys.stdin.read()):
    said = io.StringIO()
    try:
        if script not in parsers:
            parsers[script] = runpy.run_path(script)["parser"]()
        with contextlib.redirect_stderr(said):
            parsers[script].parse_args(arguments)
    except BaseException as error:
        refused[where] = f"{error!r} {said.getvalue()}"
print(json.dumps(refused))
"""


def refusals(commands: list[list[str]]) -> dict[str, str]:
    """What the parsers of benchmarks say to commands, each as where it stands, script, arguments; by where."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    finished = subprocess.run(
        [sys.executable, "-c", PARSE_ALL],
        cwd=ROOT,
        env=environment,
        input=json.dumps(commands),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert finished.returncode == 0, finished.stderr
    found: dict[str, str] = json.loads(finished.stdout.splitlines()[-1])
    return found


def test_benchmarks_shown_exist_and_know_the_options_shown() -> None:
    wrong = [["no file", "benchmarks/none.py"], ["no option", "benchmarks/lds.py", "--no-such-option"]]
    found = refusals([[shown.where, *shown.words[1:]] for shown in BENCHMARKS] + wrong)

    assert {where for where in found if where in ("no file", "no option")} == {"no file", "no option"}
    assert {where: said for where, said in found.items() if not where.startswith("no ")} == {}


def test_there_are_commands_of_every_kind() -> None:
    assert VERBS
    assert TARGETS
    assert BENCHMARKS


@pytest.mark.parametrize(
    "words",
    [
        ("bento-audit", "explane", "sentiment"),
        ("bento-audit", "index"),
        ("bento-audit", "index", "build", "sentiment", "--no-such-option"),
        ("bento-audit", "index", "build", "sentiment", "--directions", "many"),
    ],
)
def test_a_command_that_is_not_there_would_be_found(words: tuple[str, ...]) -> None:
    with pytest.raises((click.UsageError, AssertionError)):
        parsed(words)


def test_commands_are_found_in_fenced_blocks_of_a_shell_only(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "make nothing\n```text\nmake nothing\n```\n```bash\ncd x && time make demo CHECK=1  # a remark\n"
        "BENTO_AUDIT_PROFILE=full bento-audit explain sentiment \\\n  --text 'a; b' | less\n"
        "$ python benchmarks/lds.py > bento-audit\ncurl -s localhost\n```\n"
    )

    assert [(one.words, dict(one.environment)) for one in check.commands_of(page)] == [
        (("make", "demo", "CHECK=1"), {}),
        (("bento-audit", "explain", "sentiment", "--text", "a; b"), {"BENTO_AUDIT_PROFILE": "full"}),
        (("python", "benchmarks/lds.py"), {}),
    ]
    assert [one.where.rpartition(":")[2] for one in check.commands_of(page)] == ["6", "7", "9"]


def test_the_check_leaves_out_what_a_copy_cannot_run_and_says_why(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "```bash\nmake demo\nmake demo CHECK=1\nmake bench ONLY=query\nbento-audit index build NAME\n"
        "bento-audit rules check rules.yml\nbento-audit rules render sentiment --out rules.yml\n"
        "bento-audit rules check rules.yml\npython benchmarks/lds.py\n```\n"
    )
    made: set[str] = set()

    reasons = [check.why_left_out(one, made, benchmarks=False) for one in check.commands_of(page)]

    assert [reason and reason.partition(":")[0] for reason in reasons] == [
        "it serves until it is stopped",
        None,
        "make bench is a run of its own",
        "NAME is the reader's own",
        "rules.yml is the reader's own",
        None,
        None,
        "a measurement",
    ]


def test_the_list_runs_nothing() -> None:
    command = [sys.executable, str(ROOT / "docs" / "check_commands.py"), "--list"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)

    assert finished.returncode == 0, finished.stderr
    assert len(finished.stdout.splitlines()) == len(SHOWN)
    assert "run   README.md" in finished.stdout


LINKED = sorted([*(ROOT / "docs").glob("*.md"), *(ROOT / "benchmarks").glob("*.md")])


@pytest.mark.parametrize("document", LINKED, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_of_pages_lead_to_files_and_headings_that_there_are(document: Path) -> None:
    for target, anchor in re.findall(r"\]\((?!https?://)([^)#]*)#?([^)]*)\)", document.read_text(encoding="utf-8")):
        file = document.parent / target if target else document
        assert file.exists(), target
        if anchor:
            assert anchor in _anchors(file), f"{target}#{anchor}"


def _anchors(file: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
