"""``bento-audit suspects``: training examples ranked by the harm they do."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from audit_service.cli.console import duration, facts, output_console, print_json, remark
from audit_service.cli.options import config_argument, json_option, open_config, open_workspace, profile_option
from audit_service.cli.wording import Wording, target_text

if TYPE_CHECKING:
    from influence_engine.evaluation import Measure
    from influence_engine.tasks import Task

TARGET_WIDTH = 24
MEASURES = ("harm", "loss", "self_influence", "out_of_sample_confidence")


def _csv(ctx: click.Context, parameter: click.Parameter, value: Path | None) -> Path | None:
    """Refuses, before any work is done, a file that could not be written in the end."""
    if value is None:
        return None
    if value.suffix.lower() != ".csv":
        raise click.BadParameter(f"{value} ends in {value.suffix or 'nothing'!r}; a CSV file is written: name it *.csv")
    if not value.parent.is_dir():
        raise click.BadParameter(f"there is no folder {value.parent} to write {value.name} to")
    if not os.access(value.parent, os.W_OK):
        raise click.BadParameter(f"nothing can be written to the folder {value.parent}")
    return value


def _folds(ctx: click.Context, parameter: click.Parameter, value: int) -> int:
    if value == 1:
        raise click.BadParameter("1 fold would leave nothing to train on; give 2 or more, or 0 for none")
    return value


@click.command("suspects", short_help="Rank training examples by the harm they do to held-out predictions.")
@config_argument
@profile_option
@click.option("--top-k", type=click.IntRange(min=1), default=20, show_default=True, help="How many to show.")
@click.option(
    "--by", type=click.Choice(MEASURES), default="harm", show_default=True, help="What to rank by, worst first."
)
@click.option(
    "--folds",
    type=click.IntRange(min=0),
    default=0,
    callback=_folds,
    show_default=True,
    help="Compute the out-of-sample confidence in each label, too, by this many trainings.",
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    callback=_csv,
    metavar="FILE.csv",
    help="Write all training examples to a CSV file.",
)
@click.option("--dry-run", is_flag=True, help="Only say how much there is to compute and about how long it takes.")
@json_option
def command(
    config: str | None,
    profile: str | None,
    top_k: int,
    by: Measure,
    folds: int,
    out: Path | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Rank the training examples of CONFIG by the harm they do to its held-out examples (data.validation).

    Harm is how much training with an example lowered the measurement of the held-out examples (of a label: the log-odds
    of the true one), on average.
    What ranks high may be labelled wrongly, or be right and unlike the rest: look before you delete.

    --folds K fine-tunes K times as the recorded run did, each time without one of K parts, and says how probable each
    label is to a model that has not seen it. It goes on where it was interrupted.

    \b
    Examples:
      bento-audit suspects sentiment --out suspects.csv
      bento-audit suspects sentiment --folds 5 --by out_of_sample_confidence --dry-run
    """
    if by == "out_of_sample_confidence" and not folds:
        raise click.UsageError("--by out_of_sample_confidence needs the confidences: add --folds 5, or another number")
    settings = open_config(config, profile=profile)
    # Imported here, not above: it imports torch, which `--help` does not wait for.
    from audit_service.workflows import suspects

    if dry_run:
        with open_workspace(settings) as workspace:
            plan = asdict(suspects.plan_suspects(workspace, folds=folds))
        if as_json:
            print_json(plan)
        else:
            output_console().print(_plan_facts(plan))
        return
    with open_workspace(settings) as workspace:
        found = suspects.find_suspects(workspace, by=by, folds=folds)
        task = workspace.task
    if out is not None:
        suspects.write_suspects(out, found.ranked)
        remark(f"{len(found.ranked):,} training examples in {out}")
    answer = found.to_dict(top_k)
    if as_json:
        print_json(answer)
    else:
        output_console().print(Group(*_blocks(answer, task)))
    if found.seen_in_training:
        remark(
            f"{len(found.seen_in_training):,} of the {found.held_out:,} held-out examples are training examples, too. "
            "They hide the harm of what they repeat: take them out of data.validation."
        )


def _plan_facts(plan: Mapping[str, Any]) -> Table:
    done = plan["folds"] - plan["trainings"]
    return facts(
        {
            "influences": f"{plan['held_out']:,} held-out x {plan['training']:,} training = {plan['pairs']:,}",
            "time": f"about {duration(plan['seconds'])}",
            "folds": f"{plan['trainings']} trainings to do, {done} done already" if plan["folds"] else None,
            "time of folds": f"about {duration(plan['training_seconds'])}" if plan["folds"] else None,
        }
    )


def _blocks(answer: Mapping[str, Any], task: Task) -> Iterator[RenderableType]:
    # Imported here, not above: it imports torch, which `--help` does not wait for.
    from influence_engine.tasks import predicts_labels

    suspects: Sequence[Mapping[str, Any]] = answer["suspects"]
    wording = Wording.of(task)
    yield _table(suspects, task, wording)
    yield Text()
    confident = suspects[0]["out_of_sample_confidence"] is not None
    yield facts(
        {
            "harm": f"how much training with it lowered {wording.the_measurement}"
            f"{' of the true label' if predicts_labels(task) else ''}, on average over "
            f"{answer['held_out']:,} held-out examples",
            "harmed": "share of the held-out examples for which it did",
            "confidence": "probability of its label to a model that was not trained on it" if confident else None,
            "shown": f"{len(suspects):,} of {answer['training']:,} training examples, by {answer['by']}",
        }
    )


def _table(suspects: Sequence[Mapping[str, Any]], task: Task, wording: Wording) -> Table:
    # Imported here, not above: it imports torch, which `--help` does not wait for.
    from influence_engine.tasks import fields_of, target_field, target_name

    taught = target_field(fields_of(task)) is not None or any(one["label"] is not None for one in suspects)
    target = target_name(task)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), expand=True)
    confident = suspects[0]["out_of_sample_confidence"] is not None
    numbers = ["rank", "harm", "harmed", "loss", *(["confidence"] if confident else [])]
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    if taught:
        table.add_column(target, no_wrap=True, max_width=TARGET_WIDTH, overflow="ellipsis")
    table.add_column(wording.example, no_wrap=True, overflow="ellipsis", ratio=1)
    for one in suspects:
        table.add_row(
            str(one["rank"]),
            f"{one['harm']:+.4f}",
            f"{one['harmed_share']:.0%}",
            f"{one['loss']:.3f}",
            *([f"{one['out_of_sample_confidence']:.1%}"] if confident else []),
            *([escape(_line(_target(one, target)))] if taught else []),
            escape(_line(_shown(task, one["fields"], target))),
        )
    return table


def _target(suspect: Mapping[str, Any], target: str) -> str:
    """An example's target in training: the label that it is grouped under, else the value itself."""
    value = suspect["label"] if suspect["label"] is not None else suspect["fields"].get(target)
    return target_text(value) or ""


def _shown(task: Task, fields: Mapping[str, Any], target: str) -> str:
    """An example as the task shows it, or all but the target where it does not say."""
    # Imported here, not above: it imports torch, which `--help` does not wait for.
    from influence_engine.tasks import show

    return show(task, fields) or str({name: value for name, value in fields.items() if name != target})


def _line(shown: str) -> str:
    return " ".join("".join(letter if letter.isprintable() else " " for letter in str(shown)).split())
