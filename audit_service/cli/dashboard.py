"""``bento-audit dashboard render``: writes the Grafana dashboards."""

from __future__ import annotations

from pathlib import Path

import click

from audit_service.cli.console import output_console, print_json
from audit_service.cli.group import fail
from audit_service.cli.options import config_argument, json_option, open_config, profile_option


@click.group("dashboard", short_help="Grafana dashboards: overview, drift, explanations and jobs.")
def command() -> None:
    """Grafana dashboards over the metrics and rules.

    \b
    Example:
      bento-audit dashboard render sentiment --out dashboards/
    """


@command.command("render")
@config_argument
@profile_option
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("configs/grafana"),
    show_default=True,
    help="Write one file a dashboard into this folder.",
)
@json_option
def render(config: str | None, profile: str | None, out: Path, as_json: bool) -> None:
    """Write the dashboards as JSON for Grafana: import them, or let its provisioning read the folder.

    Data source and model are variables; the windows are those of CONFIG's rules.

    \b
    Example:
      bento-audit dashboard render sentiment --out dashboards/
    """
    settings = open_config(config, profile=profile).monitoring
    # Imported here, not above: it imports torch, which `--help` does not wait for.
    from audit_service.workflows.monitoring_files import write_dashboards

    try:
        from audit_service.monitoring.dashboards import render_all
    except ImportError as error:
        fail(f"dashboards need the package {error.name}: pip install 'bento-audit[monitoring]'", code=1)
    documents = render_all(settings)
    if as_json:
        print_json(documents)
        return
    for file in write_dashboards(documents, out):
        output_console().print(str(file), markup=False)
