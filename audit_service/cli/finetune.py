"""``bento-audit finetune``."""

from __future__ import annotations

from dataclasses import asdict

import click

from audit_service.cli.console import duration, facts, output_console, print_json, progress_shown, size
from audit_service.cli.options import config_argument, dry_run_option, json_option, open_config, profile_option


@click.command("finetune", short_help="Fine-tune the base model and record the run.")
@config_argument
@profile_option
@dry_run_option
@click.option("--restart", is_flag=True, help="Delete an earlier run of this config first.")
@json_option
def command(config: str | None, profile: str | None, dry_run: bool, restart: bool, as_json: bool) -> None:
    """Fine-tune the base model of CONFIG and record the run.

    CONFIG is a YAML file or the name of one in configs/, by default $BENTO_AUDIT_CONFIG. An interrupted run goes on
    from its last checkpoint; a complete one is left as it is.

    \b
    Examples:
      bento-audit finetune sentiment
      bento-audit finetune sentiment --profile full --dry-run
    """
    settings = open_config(config, profile=profile)
    # Imported here, not above: it imports torch, which `--help` does not wait for.
    from audit_service.cli import work

    if dry_run:
        with progress_shown() as progress:
            plan = work.plan_finetuning(settings, progress)
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
    with progress_shown() as progress:
        run = work.run_finetuning(settings, progress, restart=restart)
    if as_json:
        print_json(
            {
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
    accuracy, count = measured.get("accuracy"), measured.get("examples")
    output_console().print(
        facts(
            {
                "run": run.folder,
                "model digest": run.digests["model"],
                "validation": None if accuracy is None else f"{accuracy:.1%} of {count:.0f} held-out examples right",
                "replayable": "yes" if run.replayable else f"no: {run.why_not_replayable}",
                "next": f"bento-audit index build {settings.spelled}",
            }
        )
    )
