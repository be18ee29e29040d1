"""``bento-audit demo``: everything from fine-tuning to an explained prediction, on real data."""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from audit_service.cli.console import duration, error_console, facts, output_console, print_json, remark
from audit_service.cli.group import fail
from audit_service.cli.licences import accept_licences
from audit_service.cli.options import image_option, json_option, open_config, open_workspace
from audit_service.cli.rendering import explanation
from audit_service.cli.wording import Wording

if TYPE_CHECKING:
    from audit_service.config import AuditConfig
    from audit_service.workspace import Workspace

SENTENCE = "The acting is superb and the ending moved me to tears."
SENTENCES = {"entities": "i need to fly from baltimore to dallas on tuesday before noon"}
"""What other configs' models are asked about."""


@click.command("demo", short_help="Every step on real data: fine-tune, index, serve, explain.")
@click.argument("config", metavar="[NAME]", default="sentiment")
@click.option("--check", is_flag=True, help="Ask the server once, print the explanation, stop it and exit.")
@click.option("--text", default=None, help="The text to ask about; without it, one that the config is about.")
@image_option
@click.option("--accept-licence", is_flag=True, help="The data's licence fits this use; the demo says which it is.")
@click.option(
    "--top-k", type=click.IntRange(1, 100), default=4, show_default=True, help="How many examples for and against."
)
@click.option("--port", type=click.IntRange(1, 65535), default=3000, show_default=True, help="Or the next free one.")
@click.option("--restart", is_flag=True, help="Delete an earlier run of this config first.")
@click.option("--began", type=float, hidden=True, help="When the first command was given, in seconds since 1970.")
@json_option
def command(
    config: str,
    check: bool,
    text: str | None,
    image: Path | None,
    accept_licence: bool,
    top_k: int,
    port: int,
    restart: bool,
    began: float | None,
    as_json: bool,
) -> None:
    """Fetch pinned data and a base model, fine-tune it, index it, serve it with BentoML, and ask the server why.

    The server answers as soon as there is a first, provisional index. The better index, the replayed tier and the check
    against retraining follow beside it, and the question is asked again. What an earlier call has finished is kept.
    Without --check the server stays up until ^C.

    \b
    Examples:
      bento-audit demo
      bento-audit demo entities --check
      bento-audit demo solar_cells --accept-licence
    """
    settings = open_config(config)
    began = began or time.time()
    # A terminated demo stops its server, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    # Imported here, not above: it imports torch, which `--help` does not wait for.
    from audit_service.workflows import demo
    from audit_service.workflows.task_inputs import shown_input

    accept_licences(settings, accepted=accept_licence)
    with open_workspace(settings) as workspace:
        asked_of = _question(workspace, text, image)
        shown, wording = shown_input(workspace.task, asked_of), Wording.of(workspace.task)
        include = demo.parts_of_answer(workspace.task)
        seconds = demo.prepare(workspace, restart=restart)
    del workspace  # the server loads models of its own
    within = demo.SECONDS_OF_A_DEMO - demo.SECONDS_TO_TAKE_UP - (time.time() - began) if check else None
    with demo.running_bento(settings, port=port) as server, demo.finishing(settings, within) as finishing:
        seconds["start of the server"] = server.seconds_to_start
        first = demo.ask(server.address, asked_of, top_k=top_k, include=include)
        seconds["first prediction and explanation"] = first.seconds
        since = time.time() - began
        if not as_json:
            output_console().print(explanation(first.explanation, shown, wording))
            remark(
                f"\nThe first explanation, {duration(since)} after the first command. What no earlier call has made "
                "yet follows now, beside the running server: a better index, replay, a check, the drift baseline."
            )
        if not check:
            _say_where(server.address, asked_of, first.prediction)
        waited = time.time()
        code = finishing.wait()
        seconds["index along the trajectory, replay, check, drift baseline"] = time.time() - waited
        if code:
            fail(f"the rest of the index was not built (exit code {code}); what was said above is why", code=1)
        asked = demo.ask_again(settings, server.address, first, top_k=top_k, include=include)
        seconds["taken up, and asked again"] = asked.seconds
        if as_json:
            print_json(
                {
                    "prediction": asked.prediction,
                    "first_explanation": first.explanation,
                    "explanation": asked.explanation,
                    "seconds": seconds,
                }
            )
        else:
            output_console().print(explanation(asked.explanation, shown, wording))
        _say_how_long(seconds, time.time() - began)
        if not check:
            server.process.wait()
            raise server.stopped()


def prepare(settings: AuditConfig) -> dict[str, float]:
    """Runs all the demo's stages; the models that they open are let go when it returns."""
    # Imported here, not above: it imports torch, which `--help` does not wait for.
    from audit_service.workflows import demo

    with open_workspace(settings) as workspace:
        return demo.prepare_whole(workspace, remark)


def _say_how_long(seconds: dict[str, float], together: float) -> None:
    rows: dict[str, Any] = {stage: duration(spent) for stage, spent in seconds.items()}
    remark("")
    error_console().print(facts({**rows, "since the first command": duration(together)}))


def _question(workspace: Workspace, text: str | None, image: Path | None) -> dict[str, Any]:
    # Imported here, not above: it imports torch, which `--help` does not wait for.
    from audit_service.workflows.demo import question_of
    from audit_service.workflows.task_inputs import input_of, usual_option

    if text is None and image is None:
        if usual_option(workspace.fields).startswith("--text"):
            return input_of(workspace, SENTENCES.get(workspace.config.name, SENTENCE), None)
        return question_of(workspace)
    return input_of(workspace, text, None, image)


def _say_where(address: str, asked: dict[str, Any], prediction: dict[str, Any]) -> None:
    (field, value), *_ = asked.items()
    upload = isinstance(value, str) and value.startswith("data:")
    body = json.dumps(asked)
    how = f"-F {field}=@FILE" if upload else f"-H 'content-type: application/json' -d '{body}'"
    remark(
        f"\nServing on {address} until ^C. Ask for yourself:\n\n"
        f"  curl -s {address}/predict {how}\n"
        f"  curl -s {address}/audit/explain -H 'content-type: application/json' "
        f'-d \'{{"prediction_id": "{prediction["prediction_id"]}", "top_k": 3}}\'\n'
    )
