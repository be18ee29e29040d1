"""``bento-audit drift report | watch``."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import click

from audit_service.cli.console import facts, output_console, print_json, progress_shown, remark
from audit_service.cli.options import config_argument, json_option, open_config, profile_option

INPUT = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group("drift", short_help="What has moved: a report over a file or the record, or a live look.")
def command() -> None:
    """What has moved against the reference.

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
    """Hold a file of inputs, or the predictions on record, against CONFIG's reference.

    Every signal with a test (scipy), the groups of training examples that gained and lost influence, and the inputs
    that moved it. Of the record, also how predictions compare with the true labels that have arrived.

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
    with progress_shown() as progress:
        found = drift_report.report(settings, inputs, reach, most_explained, progress)
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
            f"{outside['share']:.1%}, {outside['reference']:.1%} in the reference, {_alert(outside, '.1%')}"
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
    """See drift in five minutes: serve NAME, send it quiet traffic, then another domain's, and show what moved.

    Runs the demo's stages first where they have not run yet. Half of the predictions are explained. Where Prometheus is
    installed, it is started with the rendered rules, and the alerts that fire are shown. Without --check everything
    stays up until ^C.

    \b
    Examples:
      bento-audit drift watch
      bento-audit drift watch sentiment --domain vader/amazon --check
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    # The server reads the same config: half of what it predicts is explained.
    os.environ.setdefault("BENTO_AUDIT_MONITORING__SAMPLE_RATE", "0.5")
    os.environ.setdefault("BENTO_AUDIT_MONITORING__SAMPLE_QUEUE", str(events))
    settings = open_config(config)
    # Imported here, not above: it imports torch, which `--help` does not wait for.
    from audit_service.cli import demo_steps, drift_watch

    with progress_shown() as progress:
        demo_steps.prepare(settings, progress)
    wanted = round(events * settings.monitoring.sample_rate * 0.8)
    found: list[dict[str, Any]] = []
    with demo_steps.served(settings, port=port) as server, drift_watch.watched(settings, server) as running:
        explained = 0
        for name, source in (("quiet", drift_watch.QUIET), ("shifted", domain)):
            remark(f"{name}: {events} inputs of {source} ...")
            drift_watch.send(server.address, drift_watch.texts_of(settings, source, events))
            snapshot = drift_watch.snapshot_of(server.address, drift_watch.settled(explained, wanted))
            explained = snapshot["explanations"]
            alerts = drift_watch.firing(running, wait=name == "shifted")
            found.append({"traffic": name, "source": source, "drift": snapshot, "alerts": alerts})
            if not as_json:
                output_console().print(facts(_seen(name, source, snapshot, alerts)))
        if as_json:
            print_json(found)
        if running is None:
            remark("Prometheus is not installed, so there were no alerts to see (Debian: apt-get install prometheus).")
        if not check:
            where = f", Prometheus on {running.url}" if running is not None else ""
            remark(f"Serving on {server.address}{where} until ^C.")
            server.process.wait()
            raise server.stopped()
    first, second = (_moved(one["drift"]) for one in found)
    ctx.exit(0 if second and not first else 1)


def _seen(name: str, source: str, snapshot: dict[str, Any], alerts: list[dict[str, Any]]) -> dict[str, object]:
    rows: dict[str, object] = {
        f"{name} traffic": f"{source}; {snapshot['predictions']:,} predictions so far, "
        f"{snapshot['explanations']:,} explained"
    }
    rows |= _signals(snapshot["signals"])
    outside = snapshot["outside_index"]
    if outside and outside["share"] is not None:
        rows["outside the index"] = f"{outside['share']:.1%}, {_alert(outside, '.1%')}"
    fired = sorted({f"{one['labels']['alertname']} ({one['labels'].get('signal')})" for one in alerts})
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


def _moved(snapshot: dict[str, Any]) -> bool:
    outside = snapshot["outside_index"]
    return any(one["moved"] for one in snapshot["signals"]) or bool(outside and outside["moved"])
