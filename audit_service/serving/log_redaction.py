"""Keeps request bodies out of the server's log.

BentoML logs every failed validation with its traceback, and pydantic's error text quotes the input.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from pydantic import ValidationError

from audit_service.bentoml_internals import LOGGERS
from audit_service.outside import MOST_NAMED, said

MOST_PLACES = 5
"""As many mistakes of one request are logged."""


class InputRedactingFilter(logging.Filter):
    """Replaces the traceback of a validation error by its kind and place."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Lets every record through, some without their traceback."""
        error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
        if isinstance(error, ValidationError):
            details = error.errors(include_input=False, include_context=False, include_url=False)
            places = "; ".join(f"{place_of(item['loc'])}: {item['type']}" for item in details[:MOST_PLACES])
            record.msg = said(f"{record.getMessage()}: {error.error_count()} invalid ({places})")
            record.args = ()
            record.exc_info = None
            record.exc_text = None
        return True


def place_of(loc: Iterable[int | str]) -> str:
    """Where in a body something was found, by names that came with it."""
    return said(".".join(map(str, loc)), MOST_NAMED) or "body"


def hide_inputs_in_logs() -> None:
    """Adds the filter to BentoML's loggers, once."""
    for name in LOGGERS:
        logger = logging.getLogger(name)
        if not any(isinstance(one, InputRedactingFilter) for one in logger.filters):
            logger.addFilter(InputRedactingFilter())
