"""``bento-audit index build | check | inspect | upgrade | verify``."""

from __future__ import annotations

from typing import Any

import click

from audit_service.cli.console import duration, facts, output_console, print_json, progress_shown, remark, size
from audit_service.cli.options import (
    config_argument,
    dry_run_option,
    json_option,
    open_config,
    open_workspace,
    profile_option,
)
from audit_service.cli.wording import tiers_shown
from audit_service.workflows.processes.priority import lowest_priority


@click.group("index", short_help="The training-gradient index: build, check, inspect, upgrade, verify.")
def command() -> None:
    """The training-gradient index of a fine-tuned model.

    \b
    Examples:
      bento-audit index build sentiment
      bento-audit index inspect sentiment --json
    """


@command.command("build")
@config_argument
@profile_option
@click.option(
    "--directions",
    type=click.IntRange(0, 512),
    default=0,
    show_default=True,
    help="Replay so many directions for the replayed tier; each takes about as long as the training did.",
)
@click.option("--check", is_flag=True, help="Check the answers against retraining, too, as `index check` does.")
@click.option("--reference", is_flag=True, help="Build the drift baseline, too, as `reference build` does.")
@click.option(
    "--within",
    type=click.FloatRange(min=0, min_open=True),
    metavar="MINUTES",
    help="Replay fewer directions, or none, where all of this would take longer; says so.",
)
@click.option(
    "--provisional/--no-provisional",
    default=True,
    show_default=True,
    help="Where there is no index yet, make a quick one of one step at the final weights first, to serve meanwhile.",
)
@click.option("--idle", is_flag=True, help="Give way to everything else on the machine, such as the service.")
@dry_run_option
@json_option
def build(
    config: str | None,
    profile: str | None,
    directions: int,
    check: bool,
    reference: bool,
    within: float | None,
    provisional: bool,
    idle: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Build the index of CONFIG's model, and export the model for serving.

    First says how long it will take and how much disk and memory. A build that was interrupted goes on where it was;
    one that is there already is kept. With --directions the recorded training is then differentiated step by step for
    directions taken from the held-out examples (data.validation), and explanations are corrected by what it says.

    A service can be started as soon as this says so. It takes up without a restart what comes later, and its answers
    say what is still to come.

    \b
    Examples:
      bento-audit index build sentiment
      bento-audit index build sentiment --directions 16 --check --idle
      bento-audit index build sentiment --dry-run --json
    """
    if idle:
        lowest_priority()  # before torch is imported, whose threads inherit it
    settings = open_config(config, profile=profile)
    # Imported here, not above: it imports torch, which `--help` does not wait for.
    from audit_service.workflows.index_building import BuildOrder, build_for_serving, plan_for_serving
    from audit_service.workflows.task_inputs import usual_option

    if dry_run:
        with open_workspace(settings) as workspace:
            plan = plan_for_serving(workspace, directions)
        if as_json:
            print_json(plan)
        else:
            output_console().print(_plan_facts(plan))
            if plan["replay"] is not None:
                output_console().print(_replay_facts(plan["replay"]))
        return
    order = BuildOrder(
        directions=directions,
        check=check,
        drift_baseline=reference,
        provisional=provisional,
        seconds=None if within is None else 60 * within,
    )
    with open_workspace(settings) as workspace:
        built = build_for_serving(workspace, order, remark)
        asked = usual_option(workspace.fields)
    if as_json:
        print_json({**built.index, "export": built.export})
        return
    output_console().print(_facts(built.index))
    if built.export is None:
        remark("Not exported to ONNX: the task has no model_inputs. Explaining works, /predict is your service's own.")
    remark(f"Next: bento-audit explain {settings.spelled} {asked}")


@command.command("check")
@config_argument
@profile_option
@json_option
def check(config: str | None, profile: str | None, as_json: bool) -> None:
    """Train CONFIG's model again without some examples, and say how far the influences were from what happened.

    Six short trainings along the recorded steps: without random examples, without those that matter most, without half
    of all, and with one set at half its weight. From then on every influence is shown with a 90% interval, and answers
    warn where training responds too nonlinearly to its examples to be explained. The check itself says what would make
    it more linear. An interrupted check goes on where it was. Of a model that was trained elsewhere, its surrogate
    (`bento-audit finetune CONFIG --twin`) is trained again, as far as it agrees with the model.

    \b
    Examples:
      bento-audit index check sentiment
      bento-audit index check sentiment --json
    """
    settings = open_config(config, profile=profile)
    # Imported here, not above: it imports torch, which `--help` does not wait for.
    from audit_service.workflows.index_check import check_against_retraining

    with open_workspace(settings) as workspace:
        found = check_against_retraining(workspace)
    if as_json:
        print_json(found.model_dump(mode="json"))
        return
    output_console().print(facts(_calibration_facts(found.model_dump())))


@command.command("inspect")
@config_argument
@profile_option
@json_option
def inspect(config: str | None, profile: str | None, as_json: bool) -> None:
    """Say what CONFIG's index was built from, how, and which tiers it answers.

    \b
    Example:
      bento-audit index inspect sentiment
    """
    settings = open_config(config, profile=profile)
    # Imported here, not above: it imports torch, which `--help` does not wait for.
    from audit_service.workflows.index_building import inspect_index

    about = inspect_index(settings)
    if as_json:
        print_json(about)
    else:
        output_console().print(_facts(about))


@command.command("upgrade")
@config_argument
@profile_option
@click.option("--dry-run", is_flag=True, help="Only say what would be added, and what it takes.")
@json_option
def upgrade(config: str | None, profile: str | None, dry_run: bool, as_json: bool) -> None:
    """Give CONFIG's index the parts that came after it was built, without training or indexing again.

    The version stays current, its vectors and digests are untouched, and a service goes on with it. What was
    interrupted is done again the next time; an index that has everything is left as it is.

    \b
    Examples:
      bento-audit index upgrade sentiment
      bento-audit index upgrade sentiment --dry-run --json
    """
    settings = open_config(config, profile=profile)
    # Imported here, not above: it imports torch, which `--help` does not wait for.
    from audit_service.workflows import index_upkeep

    if dry_run:
        found = index_upkeep.planned_upgrade(settings)
    else:
        with open_workspace(settings) as workspace:
            found = index_upkeep.upgrade_index(workspace)
    if as_json:
        print_json(found.to_dict())
    else:
        output_console().print(_upgrade_facts(found.to_dict()))


@command.command("verify")
@config_argument
@profile_option
@json_option
@click.pass_context
def verify(ctx: click.Context, config: str | None, profile: str | None, as_json: bool) -> None:
    """Read every file and row of CONFIG's index again and compare digests, and check that it is of CONFIG's model.

    Exits with 1 where something has changed.

    \b
    Example:
      bento-audit index verify sentiment
    """
    settings = open_config(config, profile=profile)
    # Imported here, not above: it imports torch, which `--help` does not wait for.
    from audit_service.workflows.index_upkeep import verify_index
    from influence_engine.errors import InfluenceError

    try:
        with progress_shown() as progress:
            index = verify_index(settings, progress)
    except InfluenceError as error:
        if not as_json:
            raise
        print_json({"ok": False, "error": {"code": error.code, "message": error.message, "field": error.field}})
        ctx.exit(1)
    if as_json:
        print_json({"ok": True, "folder": str(index.folder), "content_digest": index.manifest.content_digest})
    else:
        output_console().print(f"{index.folder}: unchanged, {len(index):,} examples")


def _plan_facts(plan: dict[str, Any]) -> Any:
    seconds = plan["seconds"]
    return facts(
        {
            "training examples": f"{plan['examples']:,}",
            "trained parameters": f"{plan['parameters']:,}",
            "time": None if seconds is None else f"about {duration(seconds)}",
            "disk": f"about {size(plan['disk_bytes'])}",
            "memory": f"about {size(plan['memory_bytes'])}",
        }
    )


def _upgrade_facts(found: dict[str, Any]) -> Any:
    rows: dict[str, object] = {"index": found["folder"]}
    for name, part in found["parts"].items():
        state = "added now" if name in found["added"] else f"there since {part['created']}"
        rows[name] = f"{state}, version {part['version']}"
    for part in found["missing"]:
        needs = f", needs the {' and the '.join(part['needs'])}" if part["needs"] else ""
        took = f"about {duration(part['seconds'])}, reads {size(part['read_bytes'])}, adds {size(part['disk_bytes'])}"
        rows[part["part"]] = f"would be added: {took}{needs}"
    return facts(rows)


def _replay_facts(plan: dict[str, Any]) -> Any:
    return facts(
        {
            "replayed directions": f"{plan['directions']:,} over {plan['steps']:,} steps",
            "time": f"about {duration(plan['seconds'])}",
            "disk": f"about {size(plan['disk_bytes'])} while it runs",
            "memory": f"about {size(plan['memory_bytes'])}",
        }
    )


def _calibration_facts(found: dict[str, Any]) -> dict[str, object]:
    from influence_engine.index.calibration import QUITE_LINEAR  # it imports torch

    tiers = {
        f"{tier}, checked": f"agreement {error['agreement']:.2f}, slope {error['slope']:.2f} of retrained on predicted"
        for tier, error in found["tiers"].items()
    }
    return {
        **tiers,
        "nonlinearity": f"{found['nonlinearity']:.2f} (0: half the weight does half as much)",
        "more linear": found["smoother"] if found["nonlinearity"] > QUITE_LINEAR else None,
        "check": f"{found['retrainings']} retrainings, {found['queries']} held-out inputs",
        "trained again": None
        if found.get("surrogate") is None
        else f"not the served model but its surrogate: {found['surrogate']}",
    }


def _facts(about: dict[str, Any]) -> Any:
    left_out, kept = about["left_out"], about["influence_kept"]
    rows: dict[str, object] = {
        "index": about["folder"],
        "approximation": about["approximation"],
        "training examples": f"{about['rows']:,}",
        "numbers an example": f"{about['dimensions']:,} (from {about['coordinates']:,} coordinates)",
        "preconditioner": about["metric"],
        "damping": f"{about['damping']:.3g} ({about['damping_source']})" if about["damping"] else None,
        "energy kept": f"{about['energy_kept']:.1%} of the sampled gradients'",
        "influence kept": None if kept is None else f"{kept:.1%} on held-out examples (estimated)",
        "kept of held-out gradients": _quantiles(about["retained"]),
        "left out": f"{sum(left_out.values()):,} parameters of {len(left_out)} tensors" if left_out else None,
        "disk": size(about["disk_bytes"]),
        "memory": size(about["resident_bytes"]),
        "parts": ", ".join(sorted(about["parts"])) or None,
        "build digest": about["build_digest"],
        "content digest": about["content_digest"],
        "created": about["created"],
    }
    checked = about["calibration"]
    rows |= tiers_shown(about["tiers"])
    return facts(rows if checked is None else {**rows, **_calibration_facts(checked)})


def _quantiles(retained: dict[str, float]) -> str | None:
    """Shares by their quantiles' names: ``p01 41.2%, p50 80.3%``; None where nothing was held out."""
    return ", ".join(f"{name} {share:.1%}" for name, share in retained.items()) or None
