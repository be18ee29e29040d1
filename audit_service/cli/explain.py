"""``bento-audit explain``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from audit_service.cli.console import output_console, print_json, progress_shown
from audit_service.cli.options import config_argument, json_option, open_config, profile_option
from audit_service.cli.rendering import explanation

if TYPE_CHECKING:
    from audit_service.schemas import Polarity


@click.command("explain", short_help="Explain one prediction here, without a server.")
@config_argument
@profile_option
@click.option("--text", required=True, help="The text whose prediction is explained.")
@click.option("--target", metavar="LABEL", help="Explain this label instead of the predicted one.")
@click.option("--top-k", type=click.IntRange(1, 100), default=5, show_default=True, help="How many examples each.")
@click.option(
    "--polarity",
    type=click.Choice(["both", "proponents", "opponents"]),
    default="both",
    show_default=True,
    help="Examples that support the answer, that speak against it, or both.",
)
@json_option
def command(
    config: str | None,
    profile: str | None,
    text: str,
    target: str | None,
    top_k: int,
    polarity: Polarity,
    as_json: bool,
) -> None:
    """Say which training examples, and which changes to the base model, made CONFIG's model answer as it does.

    Influence is in log-odds: by how much training with the example raised the answer's measurement.

    \b
    Examples:
      bento-audit explain sentiment --text "a slow start, but what an ending"
      bento-audit explain sentiment --text "a slow start" --target negative --top-k 3 --json
    """
    settings = open_config(config, profile=profile)
    # Imported here, not above: it imports torch, which `--help` does not wait for.
    from audit_service.cli import explaining

    with progress_shown() as progress:
        answer = explaining.explain_text(
            settings, text, target=target, top_k=top_k, polarity=polarity, progress=progress
        )
    if as_json:
        print_json(answer)
    else:
        output_console().print(explanation(answer, text))
