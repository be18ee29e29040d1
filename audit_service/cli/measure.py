"""``bento-audit measure``: trains again with other training data, and says what changes."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from audit_service.cli.console import duration, facts, output_console, print_json, remark, size
from audit_service.cli.options import (
    Given,
    config_argument,
    image_option,
    json_option,
    one_input,
    open_config,
    open_workspace,
    profile_option,
)
from audit_service.cli.wording import Wording, target_text

if TYPE_CHECKING:
    from audit_service.config import AuditConfig
    from audit_service.workflows.counterfactual import Question


@click.command("measure", short_help="Train again without, or with other, examples, and see what changes.")
@config_argument
@profile_option
@click.option("--text", help="The text whose prediction is measured, of a task whose input is one text.")
@image_option
@click.option(
    "--input", "given", callback=one_input, metavar="JSON", help="The input's fields as JSON, or @FILE.json with them."
)
@click.option(
    "--target", metavar="LABEL|JSON", help="Measure this instead of what is predicted: a label, or JSON for the task."
)
@click.option("--without", metavar="EXAMPLES", help="Train without these.")
@click.option("--relabel", metavar="EXAMPLES", help="Train with the label --label for these.")
@click.option("--label", metavar="LABEL", help="With --relabel: the label that they get; JSON where it is no name.")
@click.option("--edit", metavar="EXAMPLE", help="Train with the text --new-text for this one: a handle or an id.")
@click.option("--new-text", help="With --edit: the text that it gets.")
@click.option(
    "--replay", is_flag=True, help="Also predict by differentiating along the recorded steps; takes some trainings."
)
@click.option("--dry-run", is_flag=True, help="Only predict time, memory and disk, from a few steps really taken.")
@json_option
def command(
    config: str | None,
    profile: str | None,
    text: str | None,
    image: Path | None,
    given: dict[str, Any] | None,
    target: str | None,
    without: str | None,
    relabel: str | None,
    label: str | None,
    edit: str | None,
    new_text: str | None,
    replay: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """What would CONFIG's model answer, had its training data differed? Trains again and measures.

    The recorded steps are executed with the change, everything else as it was, and the answer's measurement (of a
    label: its log-odds) is compared with what was predicted. EXAMPLES are the strongest of the explanation (top:10,
    proponents:10, opponents:10), a group (group:COLUMN=VALUE), or some by their handles or ids (ids:A,B). An
    interrupted measurement goes on when the same command is given again; the retrained model is cached for other
    inputs.

    \b
    Examples:
      bento-audit measure sentiment --text "a slow start" --without top:10
      bento-audit measure sentiment --text "a slow start" --without group:label=negative --dry-run
      bento-audit measure sentiment --text "a slow start" --relabel proponents:3 --label negative
      bento-audit measure sentiment --text "a slow start" --edit EXAMPLE --new-text "a fine start" --json
      bento-audit measure pairs --input '{"premise": "it rains", "hypothesis": "it is wet"}' --without top:10
    """
    if sum(part is not None for part in (without, relabel, edit)) != 1:
        raise click.UsageError("say what is changed, exactly one of --without, --relabel and --edit")
    if (relabel is None) != (label is None) or (edit is None) != (new_text is None):
        raise click.UsageError("--relabel goes with --label, and --edit with --new-text")
    settings = open_config(config, profile=profile)
    # Imported here, not above: it imports torch, which `--help` does not wait for.
    from audit_service.cli.selecting import selection
    from audit_service.schemas import Edit, Relabel
    from audit_service.workflows.counterfactual import Question
    from audit_service.workflows.task_inputs import target_of

    asked = Question(
        input={},
        target=None if target is None else target_of(target),
        without=None if without is None else selection(without),
        relabel=None if relabel is None else Relabel(**selection(relabel).model_dump(), label=label or ""),
        edit=None if edit is None else Edit(example=edit, text=new_text or ""),
        replay=replay,
    )
    measure_in_terminal(settings, asked, Given(text, image, given), dry_run=dry_run, as_json=as_json)


def measure_in_terminal(
    settings: AuditConfig,
    asked: Question,
    given: Given,
    *,
    dry_run: bool = False,
    as_json: bool = False,
) -> None:
    """Answers a counterfactual question with progress, and shows the answer.

    Args:
        settings: Config of the model.
        asked: The question, but for its input.
        given: The input.
        dry_run: Only predict time, memory and disk.
        as_json: Write JSON.
    """
    # Imported here, not above: it imports torch, which `--help` does not wait for.
    from audit_service.workflows.counterfactual import Measuring, retrainings_folder
    from audit_service.workflows.task_inputs import input_of, shown_input

    try:
        with open_workspace(settings) as workspace:
            asked = replace(asked, input=input_of(workspace, given.text, given.fields, given.image))
            measuring = Measuring(workspace, local=True)
            if dry_run:
                change = measuring.change(asked)
                cost = {"changed_examples": len(change.replacements), **asdict(measuring.cost(asked))}
            else:
                found = measuring.answer(asked, workspace.progress).model_dump(mode="json")
            seen, wording = shown_input(workspace.task, asked.input), Wording.of(workspace.task)
    except KeyboardInterrupt:
        remark(f"The training so far is in {retrainings_folder(settings)}; the same command goes on after it.")
        raise
    if dry_run:
        if as_json:
            print_json(cost)
        else:
            output_console().print(_cost(cost))
    elif as_json:
        print_json(found)
    else:
        output_console().print(_found(found, seen, wording))


def _cost(cost: dict[str, Any]) -> Any:
    replay = cost["replay_seconds"]
    return facts(
        {
            "changed": f"{cost['changed_examples']:,} training examples",
            "training": f"{cost['steps']:,} steps, about {duration(cost['seconds'])}",
            "control": f"about {duration(cost['control_seconds'])}, unless it has been done here before",
            "replay": f"about {duration(replay)}" if replay else None,
            "memory": f"about {size(cost['memory_bytes'])}",
            "disk": f"at most {size(cost['disk_bytes'])}",
        }
    )


DONE = {"remove": "left out", "relabel": "labelled otherwise", "edit": "with another text"}


def _found(found: dict[str, Any], seen: str, wording: Wording) -> Any:
    change = found["change"]
    flip = f"{change['label_before']} becomes {change['label_after']}" if change["flipped"] else "stays"
    surrogate = found.get("twin")
    unusable = None if surrogate is None else surrogate.get("unusable")
    rows: dict[str, object] = {
        "WARNING": None if unusable is None else f"of no use: it was measured on a surrogate, and {unusable}",
        wording.input: seen,
        "changed": f"{found['changed_examples']:,} of {found['training_examples']:,} training examples "
        f"{DONE[found['kind']]}",
        "target": target_text(change["target"]),
        "measured": wording.amount(f"{change['measured']:+.4f}")
        + f": from {change['before']:+.4f} to {change['after']:+.4f}"
        + _probabilities(change["probability_before"], change["probability_after"]),
    }
    for tier, predicted in change["predicted"].items():
        ratio = change["ratio"][tier]
        error = found["predicted_error_90"].get(tier)
        interval = "" if error is None else f" ± {error:.4f}"
        within = "" if error is None else f"; {_within(change['measured'], predicted, error)}"
        rows[f"predicted ({tier})"] = (
            wording.amount(f"{predicted:+.4f}{interval}")
            + _probabilities(None, change["probability_predicted"][tier])
            + ("" if ratio is None else f"; measured is {ratio:.2f} times that")
            + within
        )
    if change["label_before"] is not None:
        rows["label"] = flip
    if found["control_gap"] > 0:
        rows["noise"] = (
            f"executing the recorded steps here differs by {wording.amount(format(found['control_gap'], '.2g'))} "
            "from the record"
        )
    if surrogate is not None:
        rows["trained again"] = f"not the served model but its surrogate: {surrogate['summary']}"
    rows["time"] = (
        f"{duration(found['seconds'])} for {found['steps']:,} steps, control {duration(found['control_seconds'])}"
    )
    rows["memory"] = f"{size(found['memory_bytes'])}, predicted {size(found['memory_predicted_bytes'])}"
    return facts(rows)


def _probabilities(before: float | None, after: float | None) -> str:
    """The probabilities that a change goes from and to; nothing where the task has none."""
    if after is None:
        return ""
    return f", to {after:.1%}" if before is None else f", {before:.1%} to {after:.1%}"


def _within(measured: float, predicted: float, error: float) -> str:
    return "within its interval" if abs(measured - predicted) <= error else "OUTSIDE its 90% interval"
