"""The command ``bento-audit``: one module a verb, loaded when it is asked for."""

from audit_service.cli.group import main

__all__ = ["main"]
