"""``bento-audit rules render | check``: Prometheus rules and alerts."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import click

from audit_service.cli.console import output_console, print_json, remark
from audit_service.cli.options import json_option, open_config, profile_option

FORMATS = ("prometheus", "prometheus-operator")

configs_argument = click.argument("configs", nargs=-1, metavar="[CONFIG]...")
format_option = click.option(
    "--format",
    "format_",
    type=click.Choice(FORMATS),
    default=FORMATS[0],
    show_default=True,
    help="A file for rule_files, or a PrometheusRule.",
)


@click.group("rules", short_help="Prometheus rules and alerts for drift: render, check.")
def command() -> None:
    """Recording rules and alerts for Prometheus.

    \b
    Examples:
      bento-audit rules render sentiment --out rules.yml
      bento-audit rules check rules.yml
    """


@command.command("render")
@configs_argument
@profile_option
@format_option
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Write to this file.")
@json_option
def render(configs: tuple[str, ...], profile: str | None, format_: str, out: Path | None, as_json: bool) -> None:
    """Write recording rules for every model, and drift alerts for the models of the CONFIGs.

    PSI and Jensen-Shannon divergence of predictions, confidence, embedding clusters and influence, over the windows of
    the config (1h and 24h). Each model is compared with its own baseline, a canary with that of the canary; thresholds
    come from that baseline, and below its volume no alert fires. Windows and links are those of the first CONFIG.

    \b
    Examples:
      bento-audit rules render sentiment --out rules.yml
      bento-audit rules render sentiment canary --format prometheus-operator
    """
    opened = [open_config(name, profile=profile) for name in configs or (None,)]
    # Imported here, not above: it imports torch, which `--help` does not wait for.
    from audit_service.monitoring.rules import Format, clean_line
    from audit_service.workflows.monitoring_files import render_rules

    rendered = render_rules(opened, cast(Format, format_))
    for name in rendered.without_baseline:
        remark(f"{name} has no baseline, so it gets no drift alerts: bento-audit reference build")
    if out is not None:
        rendered.write(out)
    if as_json:
        series = rendered.series
        print_json({"groups": rendered.groups, "series_per_replica": series, "file": str(out) if out else None})
        return
    if out is None:
        print(rendered.text, end="")
    for model, count in rendered.series.items():
        remark(f"{clean_line(model)}: a replica adds at most {count} series")


@command.command("check")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@json_option
def check(file: Path, as_json: bool) -> None:
    """Let promtool check FILE; exits with 1 where it finds a mistake.

    \b
    Example:
      bento-audit rules check rules.yml
    """
    from audit_service.workflows.processes.promtool import check_rules

    said = check_rules(file.read_text(encoding="utf-8"))
    if as_json:
        print_json({"ok": True, "said": said})
    else:
        output_console().print(said, markup=False)
