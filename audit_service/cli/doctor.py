"""``bento-audit doctor``: checks the set-up and says what to do."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click
from rich.markup import escape
from rich.table import Table

from audit_service.cli.console import output_console, print_json
from audit_service.cli.options import config_argument, json_option, open_config, profile_option

if TYPE_CHECKING:
    from audit_service.workflows.diagnosis.finding import Finding

COLOURS = {"ok": "green", "note": "yellow", "missing": "yellow", "broken": "bold red"}


@click.command("doctor", short_help="Check the set-up and say what to do.")
@config_argument
@profile_option
@json_option
@click.pass_context
def command(ctx: click.Context, config: str | None, profile: str | None, as_json: bool) -> None:
    """Check the machine and, with CONFIG (or $BENTO_AUDIT_CONFIG), everything made from it; say what to do.

    Exits with 1 where something is broken; what has only not been made yet is no failure.

    \b
    Examples:
      bento-audit doctor
      bento-audit doctor sentiment --json
    """
    # Imported here, not above: it imports torch, which `--help` does not wait for.
    from audit_service.workflows.diagnosis.machine import look_at_machine
    from audit_service.workflows.diagnosis.project import look_at_named_project

    findings = [*look_at_machine(ctx.obj), *look_at_named_project(lambda: open_config(config, profile=profile))]
    broken = any(finding.state == "broken" for finding in findings)
    if as_json:
        print_json({"ok": not broken, "findings": [asdict(finding) for finding in findings]})
    else:
        output_console().print(_table(findings))
    ctx.exit(1 if broken else 0)


def _table(findings: list[Finding]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        advice = f"\n[dim]→ {escape(finding.advice)}[/]" if finding.advice else ""
        colour = COLOURS[finding.state]
        table.add_row(f"[{colour}]{finding.state}[/]", finding.what, escape(finding.found) + advice)
    return table
