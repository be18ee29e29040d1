"""Every error in one shape: turns the error bodies of BentoML and Starlette into ``{"error": {...}}``.

BentoML answers a raised error with a list ``[{"error": "..."}]``, a failed validation with ``{"error", "detail"}``,
its own limits with ``{"error": "..."}``; Starlette answers an unknown path with plain text.
"""

from __future__ import annotations

import functools
import json
import typing
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any, ParamSpec

from pydantic import BaseModel
from starlette.responses import JSONResponse

from audit_service.errors import NoSuchEndpointError, body_of, error_body, status_of
from audit_service.outside import MOST_NAMED, said
from audit_service.serving.request_context import request_to
from audit_service.serving.schema_fields import Shape, field_names
from influence_engine.errors import InfluenceError

Arguments = ParamSpec("Arguments")

CODES = {
    400: "invalid_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    413: "body_too_large",
    415: "unsupported_media_type",
    422: "invalid_request",
    429: "too_many_requests",
    500: "internal_error",
    503: "service_unavailable",
    504: "timeout",
}


def uniform_body(
    status: int,
    content_type: str,
    body: bytes,
    *,
    endpoints: Iterable[str] = (),
    shape: Shape | None = None,
    system: bool = False,
) -> dict[str, Any] | None:
    """The error body for a response of status 400 or above, or ``None`` if the response should stay as it is.

    Args:
        status: The response's status.
        content_type: Its media type.
        body: Its body.
        endpoints: Paths that exist, for the message of a 404.
        shape: The request's schema, for the message about an unknown field.
        system: It is of a path of the server itself, where every plain text is an error's message.
    """
    if content_type.startswith("text/plain") and status in (404, 405):
        return error_body(CODES[status], _wrong_address(status, endpoints, "GET" if system else "POST, as a rule"))
    if content_type.startswith("text/plain") and system:
        return error_body(_code(status), body.decode("utf-8", "replace").strip())
    if not content_type.startswith("application/json"):
        return None
    try:
        found = json.loads(body)
    except ValueError:
        return None
    if isinstance(found, list) and len(found) == 1:
        found = found[0]
    if not isinstance(found, dict) or not isinstance(found.get("error"), str):
        return None
    if isinstance(found.get("detail"), list) and found["detail"]:
        return _validation(found["detail"], shape)
    return _nested(found["error"]) or error_body(_code(status), found["error"])


def answering_errors(
    method: Callable[Arguments, Coroutine[Any, Any, Any]],
) -> Callable[Arguments, Coroutine[Any, Any, Any]]:
    """Turns what an endpoint raises on purpose into the response it means, where there is a request to respond to.

    Where BentoML runs several services in one process, another one calls the endpoint as it is, with a dictionary as
    it would elsewhere: it is validated here.
    """

    @functools.wraps(method)
    async def wrapper(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Any:
        service, *given = args
        try:
            return await method(service, *map(validated, given), **kwargs)  # type: ignore[arg-type]
        except InfluenceError as error:
            if request_to(service) is None:
                raise
            return error_response(error)

    def validated(value: Any) -> Any:
        hint = typing.get_type_hints(method).get("request") if isinstance(value, dict) else None
        return hint.model_validate(value) if isinstance(hint, type) and issubclass(hint, BaseModel) else value

    return wrapper


def error_response(error: InfluenceError) -> JSONResponse:
    """The response to an error that was raised on purpose."""
    retry_after = getattr(error, "retry_after", None)
    return JSONResponse(
        body_of(error),
        status_code=status_of(error),
        headers={} if retry_after is None else {"Retry-After": str(retry_after)},
    )


def validation_body(details: list[Mapping[str, Any]], shape: Shape | None = None) -> dict[str, Any]:
    """The error body for pydantic's list of errors (``type``, ``loc``, ``msg``) about a request of that schema."""
    return _validation(details, shape)


def _code(status: int) -> str:
    return CODES.get(status, f"http_{status}")


def _wrong_address(status: int, endpoints: Iterable[str], method: str) -> str:
    if status == 405:
        return f"this endpoint is not asked by that method, but by {method}; the header Allow says"
    return no_such_endpoint(endpoints).message


def no_such_endpoint(endpoints: Iterable[str]) -> NoSuchEndpointError:
    """The error that says which endpoints there are."""
    return NoSuchEndpointError(f"no such endpoint; there are {', '.join(sorted(endpoints))}")


def _validation(details: list[Mapping[str, Any]], shape: Shape | None) -> dict[str, Any]:
    first = details[0]
    kind, message = str(first.get("type", "")), str(first.get("msg", "not valid"))
    if kind == "json_invalid":
        return error_body("bad_json", message)
    field = said(".".join(str(part) for part in first.get("loc", ()) if part != "root"), MOST_NAMED) or None
    if kind == "extra_forbidden":
        fields = field_names(shape, first.get("loc", ())[:-1])
        message = "no such field" + (f"; the fields are {', '.join(fields)}" if fields else "")
    if field is not None:
        message = f"{field}: {message}"
    if len(details) > 1:
        message += f" (and {len(details) - 1} more)"
    return error_body("invalid_request", message, field)


def _nested(text: str) -> dict[str, Any] | None:
    # An error that crossed a BentoML dependency arrives as a string that holds the inner body.
    if not text.startswith(("{", "[")):
        return None
    try:
        inner = json.loads(text)
    except ValueError:
        return None
    if isinstance(inner, dict) and isinstance(inner.get("error"), dict) and "code" in inner["error"]:
        return inner
    return None
