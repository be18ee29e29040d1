"""``bento-audit evaluate``: compares explanations with retraining (LDS), and counts planted label errors found."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.markup import escape
from rich.table import Table

from audit_service.cli.console import duration, facts, output_console, print_json, remark
from audit_service.cli.options import config_argument, json_option, open_config, open_workspace, profile_option
from audit_service.cli.wording import Wording

if TYPE_CHECKING:
    from audit_service.config import AuditConfig
    from influence_engine.evaluation import Evaluation
    from influence_engine.evaluation.comparison import SingleRemovals


@click.command("evaluate", short_help="Compare explanations with retraining, and with simpler methods.")
@config_argument
@profile_option
@click.option("--queries", type=click.IntRange(2), default=64, show_default=True, help="Held-out examples to explain.")
@click.option(
    "--tuning",
    type=click.IntRange(1),
    help="How many of them only choose the damping of the tuned row.  [default: a quarter]",
)
@click.option("--subsets", type=click.IntRange(2), default=40, show_default=True, help="Retrainings at each fraction.")
@click.option(
    "--fraction",
    "fractions",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    multiple=True,
    default=(0.05,),
    show_default=True,
    help="Share of the training examples that a retraining leaves out; may be given several times.",
)
@click.option(
    "--truth",
    type=click.Choice(["removal", "afresh", "both"]),
    default="removal",
    show_default=True,
    help="removal: the recorded steps without the examples. afresh: trained again in a new order.",
)
@click.option("--single", type=click.IntRange(0), default=0, help="Also leave out this many examples one at a time.")
@click.option(
    "--leave-out", metavar="ID", multiple=True, help="Also leave out this example alone; may be given several times."
)
@click.option("--refined", is_flag=True, help="Also the refined tier, which solves anew for every query (slow).")
@click.option(
    "--planted",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    metavar="SHARE",
    help="Instead: change this share of the labels, fine-tune on them, and say how many of them are found.",
)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Folder for results and plot.")
@click.option("--dry-run", is_flag=True, help="Only say how many retrainings it takes, and how long.")
@json_option
def command(
    config: str | None,
    profile: str | None,
    queries: int,
    tuning: int | None,
    subsets: int,
    fractions: tuple[float, ...],
    truth: str,
    single: int,
    leave_out: tuple[str, ...],
    refined: bool,
    planted: float | None,
    out: Path | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Do the explanations of CONFIG's model say what retraining does?

    Trains the recorded run again without random shares of its examples and correlates, query by query, the changes
    that were predicted with those measured: the linear datamodeling score (LDS), 1 is perfect. Text search,
    embeddings and plain gradients are beside it. Every retraining is cached: an interrupted evaluation goes on where it
    was, and asking for more subsets or another method costs only what is new.

    \b
    Examples:
      bento-audit evaluate sentiment --dry-run
      bento-audit evaluate sentiment --fraction 0.05 --fraction 0.2 --single 20
      bento-audit evaluate sentiment --subsets 2 --leave-out train-17 --leave-out train-23
      bento-audit evaluate sentiment --subsets 80 --json
      bento-audit evaluate sentiment --planted 0.1
    """
    settings = open_config(config, profile=profile)
    if planted is not None:
        _planted(settings, planted, out, as_json=as_json)
        return
    # Imported here, not above: it imports torch, which `--help` does not wait for.
    from audit_service.workflows import evaluation
    from influence_engine.evaluation import EvaluationPlan

    plan = EvaluationPlan(
        fractions=fractions,
        subsets=subsets,
        kinds=("removal", "afresh") if truth == "both" else (truth,),  # type: ignore[arg-type]
        tuning=tuning,
        single=single,
        leave_out=leave_out,
        refined=refined,
    )
    with open_workspace(settings) as workspace:
        if dry_run:
            cost = asdict(evaluation.plan_evaluation(workspace, plan, queries))
        else:
            folder = out or evaluation.evaluation_folder(settings)
            found = evaluation.run_evaluation(workspace, plan, queries, folder)
            unit, surrogate = Wording.of(workspace.task).unit, evaluation.surrogate_of(workspace)
    if dry_run:
        if as_json:
            print_json(cost)
        else:
            output_console().print(facts(_cost_facts(cost)))
        return
    drawn = _draw(found, folder, unit)
    if as_json:
        print_json({**found.to_dict(), **({} if surrogate is None else {"surrogate": surrogate})})
        return
    _print_table(found)
    output_console().print(facts({**_summary(found, folder, drawn), **_surrogate_facts(surrogate)}))


def _cost_facts(cost: dict[str, Any]) -> dict[str, object]:
    return {
        "queries": f"{cost['queries']:,}, of which {cost['tuning']:,} choose the damping",
        "retrainings": f"{cost['retrainings']:,}, of which {cost['kept']:,} are cached",
        "time": f"at most about {duration(cost['seconds'])}",
    }


def _planted(settings: AuditConfig, share: float, out: Path | None, *, as_json: bool) -> None:
    # Imported here, not above: it imports torch, which `--help` does not wait for.
    from audit_service.workflows import evaluation

    folder = out or evaluation.evaluation_folder(settings)
    with open_workspace(settings) as workspace:
        found = evaluation.run_planted(workspace, share, folder)
    if as_json:
        print_json(found.to_dict())
        return
    output_console().print(f"[italic]{found.planted:,} of {found.examples:,} labels are wrong on purpose[/]")
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("ranked by")
    inspected = list(next(iter(found.recall.values())))
    for looked_at in inspected:
        table.add_column(f"found in the first {looked_at:.0%}", justify="right")
    for measure, recall in found.recall.items():
        table.add_row(measure.replace("_", " "), *(f"{recall[looked_at]:.0%}" for looked_at in inspected))
    table.add_row("chance", *(f"{looked_at:.0%}" for looked_at in inspected), style="dim")
    output_console().print(table)


def _draw(found: Evaluation, folder: Path, unit: str) -> bool:
    try:
        from audit_service.workflows.evaluation_plot import PLOT, draw_evaluation
    except ImportError as error:
        remark(f"No plot: {error}. pip install 'bento-audit[report]' brings what it needs.")
        return False
    draw_evaluation(found, folder / PLOT, unit)
    return True


def _print_table(found: Evaluation) -> None:
    # Imported here, not above: it imports torch, which `--help` does not wait for.
    from audit_service.workflows.evaluation import TRUTHS
    from influence_engine.evaluation.comparison import by_truth

    console = output_console()
    for (kind, fraction), rows in by_truth(found.rows).items():
        console.print(f"[italic]{rows[0].retrainings} retrainings, {TRUTHS[kind]}, {fraction:.0%} left out[/]")
        table = Table(box=None, padding=(0, 2, 0, 0))
        for name in ("method", "LDS", "90% interval", "slope", "within ±", "ms a query"):
            table.add_column(name, justify="left" if name in ("method", "LDS", "90% interval") else "right")
        for row in rows:
            ours = "bold" if row.method.startswith(("estimated", "replayed")) else None
            interval = f"{row.low:.3f} to {row.high:.3f}"
            slope = "" if row.slope is None else f"{row.slope:.2f}"
            within = "" if row.coverage is None else f"{row.coverage:.0%}"
            ms = f"{row.ms_a_query:.1f}"
            table.add_row(escape(row.method), f"{row.lds:.3f}", interval, slope, within, ms, style=ours)
        console.print(table)


def _summary(found: Evaluation, folder: Path, drawn: bool) -> dict[str, object]:
    one_by_one = found.single
    return {
        "queries": f"{found.queries} held-out, {found.examples:,} training examples",
        "approximation": found.approximation,
        "damping": f"{found.damping:.3g}; tuned: "
        + ", ".join(f"{damping:.3g} ({truth})" for truth, damping in found.damping_tuned.items())
        if found.damping_tuned
        else None,
        "one at a time": None if one_by_one is None else _one_at_a_time(one_by_one),
        "written": f"{folder}" + (" (table and plot)" if drawn else " (table)"),
    }


def _surrogate_facts(surrogate: dict[str, Any] | None) -> dict[str, object]:
    if surrogate is None:
        return {}
    return {"trained again": f"not the served model but its surrogate: {surrogate['summary']}"}


def _one_at_a_time(found: SingleRemovals) -> str:
    from influence_engine.data.report import plural

    # Two examples can only be in the same order or not, and one has no rank.
    ranked = f"rank correlation {found.rank_correlation:.3f}, " if found.examples > 2 else ""
    return f"{plural(found.examples, 'example')}: {ranked}signs right {found.signs_right:.1%}, slope {found.slope:.2f}"
