"""``bento-audit finetune``: fine-tunes the base model and records the run."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from audit_service.cli.console import duration, facts, output_console, print_json, size
from audit_service.cli.options import (
    config_argument,
    dry_run_option,
    json_option,
    open_config,
    open_workspace,
    profile_option,
)


@click.command("finetune", short_help="Fine-tune the base model and record the run.")
@config_argument
@profile_option
@dry_run_option
@click.option("--restart", is_flag=True, help="Delete an earlier run of this config first.")
@click.option("--twin", is_flag=True, help="Train a replayable surrogate of a model that was trained elsewhere.")
@json_option
def command(config: str | None, profile: str | None, dry_run: bool, restart: bool, twin: bool, as_json: bool) -> None:
    """Fine-tune the base model of CONFIG and record the run.

    CONFIG is a YAML file or the name of one in configs/, by default $BENTO_AUDIT_CONFIG. An interrupted run goes on
    from its last checkpoint; a complete one is left as it is.

    With --twin, for a model that was trained elsewhere without a record: a model like it is trained here on the same
    data with a record, compared with it on the held-out examples (data.validation), and used to measure what cannot be
    measured on the served one. How far the two agree stands in every such answer.

    \b
    Examples:
      bento-audit finetune sentiment
      bento-audit finetune sentiment --profile full --dry-run
      bento-audit finetune my-model --twin
    """
    settings = open_config(config, profile=profile)
    # Imported here, not above: it imports torch, which `--help` does not wait for.
    from audit_service.workflows.finetuning import plan_finetuning, run_finetuning
    from audit_service.workflows.surrogate_run import train_surrogate

    if dry_run:
        with open_workspace(settings) as workspace:
            plan = plan_finetuning(workspace)
        if as_json:
            print_json(asdict(plan))
            return
        output_console().print(
            facts(
                {
                    "training examples": f"{plan.examples:,}",
                    "steps": f"{plan.steps:,}",
                    "trained parameters": f"{plan.parameters:,}",
                    "time": f"about {duration(plan.seconds)}",
                    "disk": f"about {size(plan.disk_bytes)} for {plan.checkpoints} checkpoints and the model",
                    "memory": f"about {size(plan.memory_bytes)}",
                }
            )
        )
        return
    agreement = None
    with open_workspace(settings) as workspace:
        if twin:
            run, agreement = train_surrogate(workspace, restart=restart)
        else:
            run = run_finetuning(workspace, restart=restart)
    if as_json:
        print_json(
            {
                **({} if agreement is None else {"agreement": agreement}),
                "run": str(run.folder),
                "digests": run.digests,
                "steps": len(run.schedule),
                "examples": len(run.example_ids),
                "validation": run.validation,
                "replayable": run.replayable,
                "why_not_replayable": run.why_not_replayable,
            }
        )
        return
    measured = run.validation or {}
    accuracy, loss, count = (measured.get(name) for name in ("accuracy", "loss", "examples"))
    validation = None if loss is None else f"a mean loss of {loss:.4g} on {count:.0f} held-out examples"
    if accuracy is not None:
        validation = f"{accuracy:.1%} of {count:.0f} held-out examples right"
    output_console().print(
        facts(
            {
                "run": run.folder,
                "model digest": run.digests["model"],
                "validation": validation,
                "replayable": "yes" if run.replayable else f"no: {run.why_not_replayable}",
                "agreement": None if agreement is None else agreement["summary"],
                **({} if agreement is None else _surrogate_facts(agreement)),
                "next": None if agreement is not None and agreement["unusable"] else _next(settings.spelled, twin=twin),
            }
        )
    )


def _surrogate_facts(agreement: dict[str, Any]) -> dict[str, object]:
    """What is wrong with a surrogate that agrees too little, and what to change."""
    unusable = agreement["unusable"]
    return {
        "UNUSABLE": None
        if unusable is None
        else f"nothing measured on it says anything of the served model: {unusable}",
        "too little" if unusable is None else "to change": agreement.get("advice"),
    }


def _next(spelled: str, *, twin: bool) -> str:
    if twin:
        return f"bento-audit measure {spelled}, or bento-audit index check {spelled}"
    return f"bento-audit index build {spelled}"
