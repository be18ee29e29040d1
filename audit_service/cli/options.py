"""Arguments and options that several verbs share."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from audit_service.cli.console import progress_shown
from influence_engine.garbage_collection import collection_paused

if TYPE_CHECKING:
    from audit_service.config import AuditConfig
    from audit_service.workspace import Workspace

FILE = click.Path(dir_okay=False, path_type=Path)
ROWS = click.Path(exists=True, dir_okay=False, path_type=Path)

config_argument = click.argument("config", required=False, metavar="[CONFIG]")
profile_option = click.option("--profile", metavar="NAME", help="Use this profile of the config.")
json_option = click.option("--json", "as_json", is_flag=True, help="Write JSON to standard output.")
image_option = click.option(
    "--image", type=FILE, help="The picture's file, PNG or JPEG, of a task whose input is one picture."
)
dry_run_option = click.option(
    "--dry-run", is_flag=True, help="Only predict time, disk and memory, from a few steps really taken."
)


@dataclass(frozen=True)
class Given:
    """One input as it was given: a text, a picture's file, or its fields."""

    text: str | None = None
    image: Path | None = None
    fields: dict[str, Any] | None = None


def one_input(ctx: click.Context, parameter: click.Parameter, value: str | None) -> dict[str, Any] | None:
    """Callback of an option: one input as a JSON object of its fields, or as ``@FILE`` that holds it."""
    if value is None:
        return None
    written = value
    if value.startswith("@"):
        try:
            written = Path(value[1:]).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise click.BadParameter(f"{value[1:]} cannot be read: {error}") from None
    try:
        found = json.loads(written)
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is not JSON: {error}; write an object of the input's fields") from None
    if not isinstance(found, dict):
        raise click.BadParameter(f"{value!r} is no JSON object of the input's fields")
    return found


def rows_or_input(ctx: click.Context, parameter: click.Parameter, value: str | None) -> dict[str, Any] | Path | None:
    """Callback of an option: the path of a file of rows, or what ``one_input`` takes."""
    if value is None or value.startswith("@") or value.lstrip().startswith("{"):
        return one_input(ctx, parameter, value)
    path: Path = ROWS.convert(value, parameter, ctx)
    return path


def open_config(name: str | None, *, profile: str | None = None) -> AuditConfig:
    """The config of that name or file, else the one that ``BENTO_AUDIT_CONFIG`` names.

    Raises:
        ConfigError: it cannot be found or used.
    """
    with collection_paused():
        # Imported here, not above: it imports torch, which `--help` does not wait for.
        from audit_service.config import load_config

    overrides: dict[str, Any] = {} if profile is None else {"profile": profile}
    return load_config(name, overrides=overrides)


@contextlib.contextmanager
def open_workspace(config: AuditConfig) -> Iterator[Workspace]:
    """Yields the workspace of a config for one call, whose progress is shown as long as the context lasts."""
    with collection_paused():
        # Imported here, not above: it imports torch, which `--help` does not wait for.
        from audit_service.workspace import Workspace

    with progress_shown() as progress:
        yield Workspace(config, progress)
