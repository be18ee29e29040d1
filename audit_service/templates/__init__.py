"""Pages: whatever is shown goes through Jinja with autoescape, so that texts of users and training data stay texts.

A page is a template in this folder that extends ``page.html`` and gets everything it shows from whoever renders it. It
loads nothing from elsewhere and has no script.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def render(template: str, **values: Any) -> str:
    """The page that a template makes of ``values``.

    Args:
        template: The name of a file in this folder.
        **values: What it shows; every text is escaped, whatever it holds.

    Raises:
        jinja2.TemplateError: there is no such template, or it shows what it has not been given.
    """
    return _environment().get_template(template).render(values)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(percent=lambda share: f"{share:.1%}", p_value=p_value)
    return environment


def p_value(value: float | None) -> str:
    """A p-value as it is written; nothing where there is none."""
    if value is None:
        return ""
    return "p < 0.0001" if value < 1e-4 else f"p = {value:.4f}"
