"""Asks before data are fetched whose licence somebody has to accept."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import click

from audit_service.cli.console import remark

if TYPE_CHECKING:
    from audit_service.config import AuditConfig


def accept_licences(config: AuditConfig, *, accepted: bool) -> None:
    """Says what has to be accepted before the config's data are fetched, and asks, where there is somebody to ask.

    What is accepted is said in the environment of this process and of those that it starts. Where it is neither
    accepted nor refused here, fetching itself refuses.

    Args:
        config: Whose data are fetched.
        accepted: Somebody has said so already, by ``--accept-licence``.
    """
    # Imported here, not above: it imports torch, which `--help` does not wait for.
    from influence_engine.data.sources import licence_to_accept
    from influence_engine.demo_assets.packages import ACCEPT_VARIABLE, packages_folder

    sections = (config.data.train, config.data.validation, config.data.test)
    found = [licence_to_accept(one, packages_folder(config.root)) for one in sections if one is not None]
    for licence in dict.fromkeys(one for one in found if one is not None):
        remark(f"The data are under {licence.name}, of {licence.owner}: {licence.terms}.")
        if accepted or (sys.stdin.isatty() and click.confirm("Does that fit your use?", err=True)):
            known = os.environ.get(ACCEPT_VARIABLE, "")
            os.environ[ACCEPT_VARIABLE] = f"{known},{licence.name}" if known else licence.name
