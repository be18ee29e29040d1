"""``bento-audit demo``: everything from fine-tuning to an explained prediction, on real data."""

from __future__ import annotations

import json
import signal
import sys
from typing import TYPE_CHECKING, Any

import click

from audit_service.cli.console import duration, error_console, facts, output_console, print_json, remark
from audit_service.cli.options import json_option, open_config, open_workspace
from audit_service.cli.rendering import explanation

if TYPE_CHECKING:
    from audit_service.config import AuditConfig

SENTENCE = "The acting is superb and the ending moved me to tears."


@click.command("demo", short_help="Every step on real data: fine-tune, index, serve, explain.")
@click.argument("config", metavar="[NAME]", default="sentiment")
@click.option("--check", is_flag=True, help="Ask the server once, print the explanation, stop it and exit.")
@click.option("--text", default=SENTENCE, show_default=True, help="The sentence to ask about.")
@click.option(
    "--top-k", type=click.IntRange(1, 100), default=4, show_default=True, help="How many examples for and against."
)
@click.option("--port", type=click.IntRange(1, 65535), default=3000, show_default=True, help="Or the next free one.")
@click.option("--restart", is_flag=True, help="Delete an earlier run of this config first.")
@json_option
def command(config: str, check: bool, text: str, top_k: int, port: int, restart: bool, as_json: bool) -> None:
    """Fetch pinned data and a base model, fine-tune it, index it, serve it with BentoML, and ask the server why.

    What an earlier call has finished is kept. Without --check the server stays up until ^C.

    \b
    Examples:
      bento-audit demo
      bento-audit demo sentiment --check
    """
    settings = open_config(config)
    # A terminated demo stops its server, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    # Imported here, not above: it imports torch, which `--help` does not wait for.
    from audit_service.workflows import demo
    from audit_service.workflows.task_inputs import input_of

    with open_workspace(settings) as workspace:
        (field,) = input_of(workspace, text, None)
    seconds = prepare(settings, restart=restart)
    with demo.running_bento(settings, port=port) as server:
        seconds["start of the server"] = server.seconds_to_start
        asked = demo.ask(server.address, text, top_k=top_k, field=field)
        seconds["prediction and explanation"] = asked.seconds
        if as_json:
            print_json({"prediction": asked.prediction, "explanation": asked.explanation, "seconds": seconds})
        else:
            output_console().print(explanation(asked.explanation, text))
        _say_how_long(seconds)
        if not check:
            _say_where(server.address, field, asked.prediction)
            server.process.wait()
            raise server.stopped()


def prepare(settings: AuditConfig, *, restart: bool = False) -> dict[str, float]:
    """Runs the demo's stages; the models that they open are freed when it returns, before a server loads its own."""
    # Imported here, not above: it imports torch, which `--help` does not wait for.
    from audit_service.workflows import demo

    with open_workspace(settings) as workspace:
        return demo.prepare(workspace, remark, restart=restart)


def _say_how_long(seconds: dict[str, float]) -> None:
    rows: dict[str, Any] = {stage: duration(spent) for stage, spent in seconds.items()}
    remark("")
    error_console().print(facts({**rows, "together": duration(sum(seconds.values()))}))


def _say_where(address: str, field: str, prediction: dict[str, Any]) -> None:
    body = json.dumps({field: "what a film"})
    remark(
        f"\nServing on {address} until ^C. Ask for yourself:\n\n"
        f"  curl -s {address}/predict -H 'content-type: application/json' -d '{body}'\n"
        f"  curl -s {address}/audit/explain -H 'content-type: application/json' "
        f'-d \'{{"prediction_id": "{prediction["prediction_id"]}", "top_k": 3}}\'\n'
    )
