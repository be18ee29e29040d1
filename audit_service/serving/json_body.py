"""Strict JSON: what is not says where."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from audit_service.errors import BrokenJsonError


def _refuse_constant(name: str) -> Any:
    raise BrokenJsonError(f"{name} is not JSON; send a number or null")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise BrokenJsonError("the body holds a number that is too large")
    return value


def _whole(text: str) -> int:
    _finite(text)
    return int(text)


_decoder = json.JSONDecoder(parse_constant=_refuse_constant)
_checking = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_finite, parse_int=_whole)
_MAY_BE_TOO_LARGE = re.compile(rb"[eE]\+?\d{3}|\d{300}")
"""Only with such digits is a number larger than the largest: the others are read without a look at each."""


def parse_json(body: bytes) -> Any:
    """Parses strict JSON: UTF-8, no ``NaN`` or ``Infinity``, no number too large for a float, no half of a surrogate
    pair. An empty body is ``{}``.

    Raises:
        BrokenJsonError: it is not; the message says where.
    """
    if not body:
        return {}
    try:
        decoder = _checking if _MAY_BE_TOO_LARGE.search(body) else _decoder
        value = decoder.decode(body.decode("utf-8"))
        if b"\\ud" in body or b"\\uD" in body:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise BrokenJsonError(f"the body is not JSON: {error.msg} at {where}") from None
    except UnicodeDecodeError as error:
        raise BrokenJsonError(f"the body is not UTF-8 at byte {error.start}") from None
    except UnicodeEncodeError:
        raise BrokenJsonError("the body holds half of a surrogate pair, which is no character") from None
    except RecursionError:
        raise BrokenJsonError("the body is nested too deeply") from None
    return value
