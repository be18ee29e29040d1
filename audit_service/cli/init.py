"""``bento-audit init``: a config for a checkpoint that was trained elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from audit_service.cli.console import facts, output_console, print_json, progress_shown, remark
from audit_service.cli.options import json_option
from audit_service.cli.wording import tiers_shown

if TYPE_CHECKING:
    from audit_service.workflows.adoption.adopt import Adoption


@click.command("init", short_help="Write a config for a checkpoint that was trained elsewhere.")
@click.option("--model", required=True, type=click.Path(path_type=Path), help="Folder of the fine-tuned checkpoint.")
@click.option("--data", required=True, type=click.Path(path_type=Path), help="What it was trained on: CSV, JSONL ...")
@click.option("--base", metavar="PATH", help="Folder or hub id of the model that it was fine-tuned from.")
@click.option("--service", type=click.Path(path_type=Path), help="A BentoML service that serves it already.")
@click.option("--name", help="Name of the config; by default that of the model's folder.")
@click.option("--text", metavar="COLUMN", help="Column of the text, where it cannot be guessed.")
@click.option("--label", metavar="COLUMN", help="Column of the label, where it cannot be guessed.")
@click.option("--id", "id_column", metavar="COLUMN", help="Column of a unique id, where it cannot be guessed.")
@click.option("--labels", metavar="NAME,NAME", help="Names of the labels in the order of the model's outputs.")
@click.option("--overwrite", is_flag=True, help="Replace a config of this name.")
@json_option
def command(
    model: Path,
    data: Path,
    base: str | None,
    service: Path | None,
    name: str | None,
    text: str | None,
    label: str | None,
    id_column: str | None,
    labels: str | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Write a config for a sequence classifier that was trained elsewhere, without a record.

    Looks at the checkpoint and at its training data, writes configs/NAME.yaml, and says which explanations there can
    be. With --service it shows the lines that add the audit to that service; otherwise it writes a service of its own
    to bentos/NAME.

    \b
    Examples:
      bento-audit init --model out/checkpoint-500 --data train.csv
      bento-audit init --model support --data tickets.jsonl --base bert-base-uncased --service service.py
    """
    # Imported here, not above: it imports torch, which `--help` does not wait for.
    from audit_service.workflows.adoption.adopt import Request, adopt

    with progress_shown() as progress:
        adoption = adopt(
            Request(
                model=model,
                data=data,
                base=base,
                service=service,
                name=name,
                text=text,
                label=label,
                id=id_column,
                labels=None if labels is None else tuple(part.strip() for part in labels.split(",")),
                overwrite=overwrite,
            ),
            Path.cwd(),
            progress,
        )
    if as_json:
        print_json(adoption.to_dict())
    else:
        _show(adoption)


def _show(adoption: Adoption) -> None:
    # Imported here, not above: it imports torch, which `--help` does not wait for.
    from audit_service.artifacts.trainer_state import as_yaml

    checkpoint, columns = adoption.checkpoint, adoption.columns
    console = output_console()
    console.print(
        facts(
            {
                "model": f"{checkpoint.architecture}, {checkpoint.parameters:,} parameters",
                "labels": ", ".join(adoption.labels),
                "data": f"{columns.rows:,} rows, {columns.unreadable} unreadable; "
                + ", ".join(f"{field} from {column!r}" for field, column in columns.names.items()),
                **{f"written {number}": path for number, path in enumerate(adoption.written, start=1)},
                "surrogate": f"would be trained with {as_yaml(checkpoint.training)}, as trainer_state.json says"
                if checkpoint.training
                else None,
                **tiers_shown(adoption.tiers),
            }
        )
    )
    if adoption.service_diff is not None:
        console.print("\nAdd these lines to your service:\n")
        console.print(adoption.service_diff, markup=False, soft_wrap=True)
        if not adoption.service_clear:
            remark(
                "Name the fields of your answer that hold label and confidence, in place of the ?: "
                '@audited(label="FIELD", confidence="FIELD")'
            )
    remark(f"Next: bento-audit index build {adoption.name}")
