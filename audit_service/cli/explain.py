"""``bento-audit explain``: explains a prediction, or a file of them, without a server."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from audit_service.cli.console import output_console, print_json, remark
from audit_service.cli.options import (
    FILE,
    Given,
    config_argument,
    image_option,
    json_option,
    open_config,
    open_workspace,
    profile_option,
    rows_or_input,
)
from audit_service.cli.rendering import explanation, sharing
from audit_service.cli.wording import Wording
from influence_engine.garbage_collection import collection_paused

if TYPE_CHECKING:
    from audit_service.config import AuditConfig
    from audit_service.schemas import Polarity, Tier
    from audit_service.workflows.batch_explanation import Question


@click.command("explain", short_help="Explain a prediction, or a file of them, without a server.")
@config_argument
@profile_option
@click.option("--text", help="The text whose prediction is explained, of a task whose input is one text.")
@image_option
@click.option(
    "--input",
    "inputs",
    callback=rows_or_input,
    metavar="JSON|FILE",
    help="The input's fields as JSON, or @FILE.json with them; or a .jsonl, .csv or .parquet file of rows to explain.",
)
@click.option("--out", type=FILE, help="With a file of rows: the .jsonl file to write, one explanation a line.")
@click.option("--only-wrong", is_flag=True, help="With a file of rows: only those whose label is not predicted.")
@click.option(
    "--target", metavar="LABEL|JSON", help="Explain this instead of what is predicted: a label, or JSON for the task."
)
@click.option("--top-k", type=click.IntRange(1, 100), default=5, show_default=True, help="How many examples each.")
@click.option(
    "--polarity",
    type=click.Choice(["both", "proponents", "opponents"]),
    default="both",
    show_default=True,
    help="Examples that support the answer, that speak against it, or both.",
)
@click.option(
    "--group-by",
    metavar="COLUMN",
    multiple=True,
    default=("label", "source"),
    show_default=True,
    help="Sum influence by a column of the training examples: label, source, licence, consent, or any other they have.",
)
@click.option(
    "--tier",
    type=click.Choice(["best", "estimated", "refined", "replayed", "measured"]),
    default="best",
    show_default=True,
    help="refined: passes over all training examples, of a model without a record. measured: train again without the "
    "--top-k strongest examples, and compare with what was predicted.",
)
@click.option(
    "--pictures",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="Write the pictures of the training examples that are shown there, named by their handles.",
)
@click.option(
    "--parts",
    is_flag=True,
    help="Split each example's influence over parts of it, where a task has any: mentions of a text, regions of a "
    "picture.",
)
@json_option
def command(
    config: str | None,
    profile: str | None,
    text: str | None,
    image: Path | None,
    inputs: dict[str, Any] | Path | None,
    out: Path | None,
    only_wrong: bool,
    target: str | None,
    top_k: int,
    polarity: Polarity,
    group_by: tuple[str, ...],
    tier: Tier,
    pictures: Path | None,
    parts: bool,
    as_json: bool,
) -> None:
    """Say which training examples, and which changes to the base model, made CONFIG's model answer as it does.

    Influence is by how much training with the example raised the answer's measurement: for a label, its log-odds.

    With --input FILE, every row of it is explained, and the end of the output says which training examples, and which
    labels and sources, drive many of the answers. A row has the fields of an input; it may have an id, and a label (or
    a column `target`) that is explained instead of what is predicted. With --only-wrong that label is what the
    prediction is compared with, and what was predicted is explained: proponents are then what led the model astray. An
    interrupted run goes on when the same command is given again.

    With --tier refined, the influences are those of the exact Gauss-Newton matrix at the final weights, by passes over
    all training examples, for an index that does not follow recorded steps; the answer says how well the estimated
    influences agree with them.

    With --tier measured, the recorded training is executed again without the strongest examples; `bento-audit measure`
    can change more than that.

    The sums at the end are exact: they are over all training examples and all rows. How often an example was among the
    --top-k returned says less: it is a lower bound of how many answers the example takes part in.

    \b
    Examples:
      bento-audit explain sentiment --text "a slow start, but what an ending"
      bento-audit explain sentiment --text "a slow start" --target negative --top-k 3 --json
      bento-audit explain sentiment --text "a slow start" --tier measured
      bento-audit explain entities --text "flights to boston" --target '{"span": [11, 17], "label": "origin"}' --parts
      bento-audit explain solar_cells --image cell.png --parts --pictures shown
      bento-audit explain sentiment --input errors.jsonl --out explanations.jsonl
      bento-audit explain sentiment --input test.csv --out wrong.jsonl --only-wrong --polarity proponents
    """
    rows = inputs if isinstance(inputs, Path) else None
    given = inputs if isinstance(inputs, dict) else None
    one = {"--text": text, "--image": image}
    _check_usage(one, inputs, out, only_wrong=only_wrong, target=target)
    _check_parts(tier, parts=parts)
    if tier == "measured" and rows is not None:
        raise click.UsageError("--tier measured goes with --text or --image, or with --input of one input as JSON")
    short = rows is None and tier not in ("measured", "refined")
    with collection_paused():
        settings = open_config(config, profile=profile)
        # Imported here, not above: it imports torch, which `--help` does not wait for.
        from audit_service.workflows.batch_explanation import Question
        from audit_service.workflows.task_inputs import target_of

        question = Question(
            target=None if target is None else target_of(target),
            top_k=top_k,
            polarity=polarity,
            group_by=list(group_by),
            tier=tier,
            parts=parts,
            only_wrong=only_wrong,
        )
        if short:
            _of_one(settings, Given(text, image, given), question, pictures, as_json=as_json)
    if rows is not None and out is not None:
        _of_a_file(settings, rows, out, question, as_json=as_json)
    elif tier == "measured":
        _measured(settings, Given(text, image, given), question, as_json=as_json)
    elif not short:
        _of_one(settings, Given(text, image, given), question, pictures, as_json=as_json)


def _of_one(settings: AuditConfig, given: Given, question: Question, pictures: Path | None, *, as_json: bool) -> None:
    # Imported here, not above: it imports torch, which `--help` does not wait for.
    from audit_service.workflows import batch_explanation, shown_pictures, task_inputs

    with open_workspace(settings) as workspace:
        fields = task_inputs.input_of(workspace, given.text, given.fields, given.image)
        answer = batch_explanation.explain_input(workspace, fields, question)
        if pictures is not None:
            written = shown_pictures.write_pictures(workspace, answer, pictures)
            remark(f"{written} pictures of training examples written to {pictures}")
        seen, wording = task_inputs.shown_input(workspace.task, fields), Wording.of(workspace.task)
    if as_json:
        print_json(answer)
    else:
        output_console().print(explanation(answer, seen, wording))


def _measured(settings: AuditConfig, given: Given, question: Question, *, as_json: bool) -> None:
    # Imported here, not above: it imports torch, which `--help` does not wait for.
    from audit_service.cli.measure import measure_in_terminal
    from audit_service.schemas import Selection
    from audit_service.workflows import counterfactual

    without = Selection(top_k=question.top_k, polarity=question.polarity)
    asked = counterfactual.Question(input={}, target=question.target, without=without)
    measure_in_terminal(settings, asked, given, as_json=as_json)


def _check_usage(
    one: Mapping[str, Any],
    inputs: dict[str, Any] | Path | None,
    out: Path | None,
    *,
    only_wrong: bool,
    target: str | None,
) -> None:
    rows = isinstance(inputs, Path)
    for option, value in one.items():
        if value is not None and rows:
            raise click.UsageError(f"{option} and --input exclude each other: explain one input, or the rows of a file")
    if inputs is None and not any(value is not None for value in one.values()):
        raise click.UsageError(
            "say what to explain: --text TEXT or --image FILE, or --input FILE with --out FILE.jsonl, or --input with "
            "one input as JSON"
        )
    if not rows and (out is not None or only_wrong):
        raise click.UsageError(f"{'--out' if out is not None else '--only-wrong'} goes with --input FILE")
    if rows and out is None:
        raise click.UsageError("--input needs --out FILE.jsonl, where the explanations are written")
    if only_wrong and target is not None:
        raise click.UsageError("--only-wrong explains what was predicted; leave --target out")


def _check_parts(tier: Tier, *, parts: bool) -> None:
    if parts and tier in ("measured", "refined"):
        raise click.UsageError("--parts splits what the index itself says: leave out --tier, or name another one")


def _of_a_file(settings: AuditConfig, rows: Path, out: Path, question: Question, *, as_json: bool) -> None:
    # Imported here, not above: it imports torch, which `--help` does not wait for.
    from audit_service.workflows import batch_explanation

    try:
        with open_workspace(settings) as workspace:
            summary = batch_explanation.explain_file(workspace, rows, out, question)
            wording = Wording.of(workspace.task)
    except KeyboardInterrupt:
        folder = batch_explanation.partial_folder(out)
        if folder.exists():
            remark(f"The explanations so far are in {folder}; the same command goes on after them.")
        raise
    remark(f"{summary['explained']:,} explanations written to {out}")
    if as_json:
        print_json(summary)
    else:
        output_console().print(sharing(summary, wording))
