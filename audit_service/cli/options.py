"""Arguments and options that several verbs share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from audit_service.cli.console import progress_shown

if TYPE_CHECKING:
    from audit_service.config import AuditConfig
    from audit_service.workspace import Workspace

config_argument = click.argument("config", required=False, metavar="[CONFIG]")
profile_option = click.option("--profile", metavar="NAME", help="Use this profile of the config.")
json_option = click.option("--json", "as_json", is_flag=True, help="Write JSON to standard output.")
dry_run_option = click.option(
    "--dry-run", is_flag=True, help="Only predict time, disk and memory, from a few steps really taken."
)


def open_config(name: str | None, *, profile: str | None = None) -> AuditConfig:
    """The config of that name or file, else the one that ``BENTO_AUDIT_CONFIG`` names.

    Raises:
        ConfigError: it cannot be found or used.
    """
    # Imported here, not above: it imports torch, which `--help` does not wait for.
    from audit_service.config import load_config

    overrides: dict[str, Any] = {} if profile is None else {"profile": profile}
    return load_config(name, overrides=overrides)


@contextlib.contextmanager
def open_workspace(config: AuditConfig) -> Iterator[Workspace]:
    """What belongs to a config, for one call; how far its work is, is shown as long as the context lasts."""
    # Imported here, not above: it imports torch, which `--help` does not wait for.
    from audit_service.workspace import Workspace

    with progress_shown() as progress:
        yield Workspace(config, progress)
