"""The group of all verbs: loads one only when it is used, and turns errors into one clear message and an exit code.

Exit codes: 0 done; 1 what was checked is not in order, or the work failed; 2 wrong usage, configuration or input;
130 interrupted. A traceback is shown only with ``--debug`` or ``BENTO_AUDIT_DEBUG=1``.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

import click
from rich.markup import escape

from audit_service.cli.console import error_console

VERBS = {
    "dashboard": "audit_service.cli.dashboard",
    "demo": "audit_service.cli.demo",
    "doctor": "audit_service.cli.doctor",
    "drift": "audit_service.cli.drift",
    "evaluate": "audit_service.cli.evaluate",
    "explain": "audit_service.cli.explain",
    "finetune": "audit_service.cli.finetune",
    "index": "audit_service.cli.index",
    "init": "audit_service.cli.init",
    "measure": "audit_service.cli.measure",
    "reference": "audit_service.cli.reference",
    "rules": "audit_service.cli.rules",
    "suspects": "audit_service.cli.suspects",
}
"""Every verb and the module that holds it, as ``command``."""

CODES_OF_USAGE = frozenset({"bad_config", "bad_settings", "bad_input", "invalid_request"})
"""Errors that the user mends by asking differently: exit code 2."""


class VerbGroup(click.Group):
    """A click group that imports a verb's module when the verb is used, so that ``--help`` is quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of all verbs."""
        return sorted(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The verb's command, or None where there is none of that name."""
        module = VERBS.get(cmd_name)
        return importlib.import_module(module).command if module else None

    def main(self, args: Sequence[str] | None = None, *rest: Any, **options: Any) -> Any:
        """Runs the command line and exits with the code that fits; see the module's docstring."""
        options["standalone_mode"] = False
        try:
            code = super().main(args, *rest, **options)
        except (KeyboardInterrupt, click.Abort):
            error_console().print("interrupted")
            sys.exit(130)
        except click.ClickException as error:
            error.show(file=sys.stderr)
            sys.exit(error.exit_code)
        except Exception as error:
            fail_with(error)
        sys.exit(code if isinstance(code, int) else 0)


def fail_with(error: Exception) -> NoReturn:
    """Shows ``error`` as one message and exits."""
    if debugging():
        traceback.print_exception(error)
    code = getattr(error, "code", None)
    if isinstance(code, str):
        fail(str(error), code=2 if code in CODES_OF_USAGE else 1)
    hint = "" if debugging() else "; BENTO_AUDIT_DEBUG=1 shows where"
    fail(f"{type(error).__name__}: {error}{hint}", code=1)


def fail(message: str, *, code: int) -> NoReturn:
    """Writes ``message`` to standard error and exits with ``code``."""
    error_console().print(f"[bold red]Error:[/] {escape(message)}", soft_wrap=True, highlight=False)
    sys.exit(code)


def debugging() -> bool:
    """Whether tracebacks are wanted."""
    return os.environ.get("BENTO_AUDIT_DEBUG", "") not in ("", "0")


def _debug(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        os.environ["BENTO_AUDIT_DEBUG"] = "1"


@click.group(cls=VerbGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, expose_value=False, callback=_debug, help="Show tracebacks.")
@click.version_option(package_name="bento-audit")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Which training examples, and which changes to the base model, made this prediction?

    \b
    Every step on real data:      bento-audit demo
    A model trained elsewhere:    bento-audit init --model FOLDER --data FILE
    """
    # BentoML reports its use over the network unless told otherwise; nothing of ours does. `doctor` says what it was.
    ctx.obj = os.environ.get("BENTOML_DO_NOT_TRACK")
    os.environ["BENTOML_DO_NOT_TRACK"] = "True"
    # When it ends, Python collects garbage among everything that torch and transformers have made, for about a second.
    atexit.unregister(gc.freeze)
    atexit.register(gc.freeze)
