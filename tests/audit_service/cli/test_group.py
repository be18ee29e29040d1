"""The command as a whole: quick help, exit codes, one clear message and no traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from audit_service.cli.group import VERBS

COMMAND = [sys.executable, "-c", "from audit_service.cli import main; main()"]


def bento_audit(
    *arguments: str, folder: Path | None = None, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        cwd=folder,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_help_lists_every_verb_and_exits_0() -> None:
    finished = bento_audit("--help")

    assert finished.returncode == 0
    for verb in VERBS:
        assert f"  {verb} " in finished.stdout


@pytest.mark.parametrize("verb", [*VERBS, "index build", "index inspect", "index upgrade", "index verify"])
def test_every_verb_has_a_help_with_an_example(verb: str) -> None:
    finished = bento_audit(*verb.split(), "--help")

    assert finished.returncode == 0
    assert f"bento-audit {verb}" in finished.stdout


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_help_imports_neither_torch_nor_bentoml(verb: str) -> None:
    source = (
        "import sys, audit_service.cli.group as g\n"
        "sys.argv = ['bento-audit', sys.argv[1], '--help']\n"
        "try: g.main()\n"
        "except SystemExit: pass\n"
        "print({'torch', 'bentoml', 'transformers', 'lance'} & set(sys.modules))"
    )
    finished = subprocess.run([sys.executable, "-c", source, verb], capture_output=True, text=True, timeout=60)

    assert finished.stdout.splitlines()[-1] == "set()"


def test_explaining_needs_nothing_of_what_only_serving_needs() -> None:
    source = (
        "import sys, audit_service.cli.explain, audit_service.workflows.batch_explanation\n"
        "serving = {'_bentoml_sdk', 'bentoml._internal.service', 'onnxruntime', 'onnx', 'prometheus_client',"
        " 'sqlalchemy'}\n"
        "print(serving & set(sys.modules))"
    )
    finished = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=120)

    assert finished.stdout.splitlines()[-1:] == ["set()"], finished.stderr


def test_an_unknown_verb_is_a_usage_error() -> None:
    finished = bento_audit("explian")

    assert finished.returncode == 2
    assert "No such command 'explian'" in finished.stderr


def test_a_config_that_does_not_exist_is_one_message_without_a_traceback(tmp_path: Path) -> None:
    finished = bento_audit("index", "inspect", "nowhere", folder=tmp_path)

    assert finished.returncode == 2
    assert finished.stdout == ""
    assert finished.stderr.startswith("Error: ")
    assert "nowhere" in finished.stderr
    assert "Traceback" not in finished.stderr


@pytest.mark.parametrize("environment", [{"BENTO_AUDIT_DEBUG": "1"}, {}], ids=["environment", "option"])
def test_a_traceback_is_shown_when_asked_for(tmp_path: Path, environment: dict[str, str]) -> None:
    option = () if environment else ("--debug",)

    finished = bento_audit(*option, "index", "inspect", "nowhere", folder=tmp_path, environment=environment)

    assert finished.returncode == 2
    assert "Traceback" in finished.stderr


def test_an_interrupt_exits_with_130_and_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "waiting.py").write_text(
        "import click, time\n@click.command()\ndef command():\n    print('waiting', flush=True)\n    time.sleep(60)\n"
    )
    source = "from audit_service.cli import group; group.VERBS['wait'] = 'waiting'; group.main(['wait'])"
    process = subprocess.Popen(
        [sys.executable, "-c", source], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n"
    process.send_signal(signal.SIGINT)

    _, errors = process.communicate(timeout=30)

    assert process.returncode == 130
    assert "interrupted" in errors
    assert "Traceback" not in errors
