"""``bento-audit drift report | watch``: what has moved against the drift baseline."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from audit_service.cli.console import facts, output_console, print_json, remark
from audit_service.cli.demo import prepare
from audit_service.cli.options import config_argument, json_option, open_config, open_workspace, profile_option

if TYPE_CHECKING:
    from audit_service.workflows.drift_watch import Observation

INPUT = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group("drift", short_help="What has moved: a report over a file or the record, or a live look.")
def command() -> None:
    """What has moved against the baseline.

    \b
    Examples:
      bento-audit drift report sentiment --input tweets.jsonl
      bento-audit drift watch
    """


def _span(ctx: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    # Imported here, not above: it imports torch, which `--help` does not wait for.
    from audit_service.config.sections import DURATION

    if value is not None and not DURATION.fullmatch(value):
        raise click.BadParameter(f"found {value!r}; it should be a time such as 24h or 7d")
    return value


@command.command("report")
@config_argument
@profile_option
@click.option("--input", "inputs", type=INPUT, help="A .jsonl, .csv or .parquet file of inputs.")
@click.option("--since", callback=_span, metavar="SPAN", help="Instead: the predictions on record, such as 24h.")
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("drift.html"),
    show_default=True,
    help="Where to write; the JSON goes beside the HTML.",
)
@click.option(
    "--explain",
    "most_explained",
    type=click.IntRange(1, 10_000),
    default=200,
    show_default=True,
    help="Explain so many of the inputs at most, chosen at random.",
)
@json_option
def report(
    config: str | None,
    profile: str | None,
    inputs: Path | None,
    since: str | None,
    out: Path,
    most_explained: int,
    as_json: bool,
) -> None:
    """Compare a file of inputs, or the recorded predictions, with CONFIG's baseline.

    Shows every signal with a statistical test (scipy), the groups of training examples that gained and lost influence,
    and the inputs that moved the signals. Of recorded predictions, also how they compare with the true labels that have
    arrived.

    \b
    Examples:
      bento-audit drift report sentiment --input tweets.jsonl --out drift.html
      bento-audit drift report sentiment --since 24h --json
    """
    if (inputs is None) == (since is None):
        raise click.UsageError("give exactly one of --input and --since")
    settings = open_config(config, profile=profile)
    # Imported here, not above: it imports torch, which `--help` does not wait for.
    from audit_service.workflows import drift_report

    reach = None if since is None else drift_report.since_s(since)
    with open_workspace(settings) as workspace:
        found = drift_report.report(workspace, inputs, reach, most_explained)
    files = drift_report.write(found, out)
    if as_json:
        print_json(found)
        return
    output_console().print(facts(_facts(found)))
    remark(f"Written: {', '.join(map(str, files))}")


def _facts(found: dict[str, Any]) -> dict[str, object]:
    rows: dict[str, object] = {"inputs": f"{found['inputs_read']:,}, of which {found['inputs_explained']:,} explained"}
    rows |= _signals(found["signals"])
    outside = found["outside_index"]
    if outside:
        rows["outside the index"] = (
            f"{outside['share']:.1%}, {outside['reference']:.1%} in the baseline, {_alert(outside, '.1%')}"
        )
    for one in found["groups"][:4]:
        rows[f"{one['by']}={one['group']}"] = f"{one['change']:+.2%} of influence"
    if found["outcomes"]:
        rows["accuracy"] = f"{found['outcomes']['accuracy']:.1%} of {found['outcomes']['examples']:,} true labels"
    return rows


@command.command("watch")
@click.argument("config", metavar="[NAME]", default="sentiment")
@click.option("--domain", default="vader/tweets", show_default=True, help="The shifted traffic: packaged sentences.")
@click.option("--events", type=click.IntRange(60, 5_000), default=300, show_default=True, help="Inputs of each kind.")
@click.option("--check", is_flag=True, help="Stop when all has been shown; exits with 1 where the drift went unseen.")
@click.option("--port", type=click.IntRange(1, 65535), default=3000, show_default=True, help="Or the next free one.")
@json_option
@click.pass_context
def watch(ctx: click.Context, config: str, domain: str, events: int, check: bool, port: int, as_json: bool) -> None:
    """See drift in five minutes: serve NAME, send it baseline traffic, then another domain's, and show what moved.

    Runs the demo's stages first where they have not run yet. Half of the predictions are explained. Where Prometheus is
    installed, it is started with the rendered rules, and the alerts that fire are shown. Without --check everything
    stays up until ^C.

    \b
    Examples:
      bento-audit drift watch
      bento-audit drift watch sentiment --domain vader/amazon --check
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    # Imported here, not above: it imports torch, which `--help` does not wait for.
    from audit_service.workflows import drift_watch

    for name, value in drift_watch.server_settings(events).items():
        os.environ.setdefault(name, value)  # the server reads the same config
    settings = open_config(config)
    prepare(settings)
    found: list[drift_watch.Observation] = []
    with drift_watch.watched_server(settings, port=port) as watched:
        for observation in watched.observe(domain, events, remark):
            found.append(observation)
            if not as_json:
                output_console().print(facts(_seen(observation)))
        if as_json:
            print_json([observation.to_dict() for observation in found])
        if watched.prometheus is None:
            remark("Prometheus is not installed, so there were no alerts to see (Debian: apt-get install prometheus).")
        if not check:
            where = f", Prometheus on {watched.prometheus.url}" if watched.prometheus is not None else ""
            remark(f"Serving on {watched.server.address}{where} until ^C.")
            watched.server.process.wait()
            raise watched.server.stopped()
    ctx.exit(0 if drift_watch.drift_was_seen(found) else 1)


def _seen(observation: Observation) -> dict[str, object]:
    snapshot = observation.drift
    rows: dict[str, object] = {
        f"{observation.traffic} traffic": f"{observation.source}; {snapshot['predictions']:,} predictions so far, "
        f"{snapshot['explanations']:,} explained"
    }
    rows |= _signals(snapshot["signals"])
    outside = snapshot["outside_index"]
    if outside and outside["share"] is not None:
        rows["outside the index"] = f"{outside['share']:.1%}, {_alert(outside, '.1%')}"
    fired = sorted({f"{one['labels']['alertname']} ({one['labels'].get('signal')})" for one in observation.alerts})
    rows["alerts of Prometheus"] = ", ".join(fired) or "none"
    return rows


def _signals(signals: list[dict[str, Any]]) -> dict[str, object]:
    """A row for each signal that has been seen, with its test where there is one."""
    rows: dict[str, object] = {}
    for one in signals:
        if one["psi"] is not None:
            name = f"influence by {one['by']}" if one["by"] else one["signal"]
            test = one.get("test")
            p_value = f", p = {test['p_value']:.2g}" if test else ""
            rows[name] = f"PSI {one['psi']:.4f}, {_alert(one, '.4f', p_value)}"
    return rows


def _alert(one: dict[str, Any], form: str, more: str = "") -> str:
    return f"alert above {one['threshold']:{form}}{more}{' MOVED' if one['moved'] else ''}"
