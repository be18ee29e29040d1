"""``bento-audit reference build``: the drift baseline."""

from __future__ import annotations

from typing import Any

import click

from audit_service.cli.console import facts, output_console, print_json, remark
from audit_service.cli.options import config_argument, json_option, open_config, open_workspace, profile_option


@click.group("reference", short_help="The drift baseline: how the signals look on held-out data.")
def command() -> None:
    """The drift baseline: what production traffic is compared with.

    \b
    Example:
      bento-audit reference build sentiment
    """


@command.command("build")
@config_argument
@profile_option
@json_option
def build(config: str | None, profile: str | None, as_json: bool) -> None:
    """Predict and explain CONFIG's held-out examples (data.validation), and store the distributions of their signals.

    Label shares, bins of confidence, clusters of the model's features, influence by group of training examples, the
    share of inputs outside the index; with the thresholds that baseline traffic stays below, by bootstrap. The baseline
    lies beside the index and belongs to it: build it again after the index.

    \b
    Example:
      bento-audit reference build sentiment
    """
    settings = open_config(config, profile=profile)
    # Imported here, not above: it imports torch, which `--help` does not wait for.
    from audit_service.workflows import drift_baseline

    with open_workspace(settings) as workspace:
        baseline, file = drift_baseline.build(workspace)
    if as_json:
        print_json({**baseline.model_dump(mode="json", exclude={"centres"}), "file": str(file)})
        return
    output_console().print(facts(_facts(baseline, str(file))))
    if "prediction" not in baseline.signals:
        watched = [*baseline.signals, *(f"influence by {one.by}" for one in baseline.influence)]
        remark(f"The task predicts no labels, so none are watched; what is: {', '.join(watched)}.")
    remark(f"Next: bento-audit rules render {settings.spelled}")


def _facts(baseline: Any, file: str) -> dict[str, object]:
    rows: dict[str, object] = {
        "baseline": file,
        "model": baseline.model,
        "held-out examples": f"{baseline.predictions:,}, of which {baseline.explanations:,} explained",
        "tier": baseline.tier,
        "accuracy": f"{baseline.outcomes['accuracy']:.1%}" if baseline.outcomes else None,
    }
    for signal, one in baseline.signals.items():
        rows[signal] = f"{len(one.shares)} bins, alert above a PSI of {_levels(one.steps())}"
    for one in baseline.influence:
        rows[f"influence by {one.by}"] = f"{len(one.shares)} bins, alert above a PSI of {_levels(one.steps())}"
    if baseline.outside_index is not None:
        outside = baseline.outside_index
        rows["outside the index"] = f"{outside.share:.1%}, alert above a share of {_levels(outside.steps('share'))}"
    return rows


def _levels(steps: list[tuple[int, float]]) -> str:
    """``0.1 (from 200 events), 0.06 (from 400)``."""
    first, *later = [f"{value:.3g} (from {volume:,}" for volume, value in steps]
    return ", ".join([f"{first} events)", *(f"{one})" for one in later)])
