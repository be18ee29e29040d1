"""What the middleware knows about the endpoints of a service."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol

from audit_service.bentoml_internals import PICKLED
from audit_service.errors import BadRequestError, MediaTypeError
from audit_service.serving.asgi import JSON, App
from audit_service.serving.request_context import RequestContext
from audit_service.serving.schema_fields import Shape

Direct = Callable[[Any, Any], Awaitable[App | None]]
"""From a service's instance and the parsed body to the response; ``None`` leaves the answer to BentoML."""

FORMS = frozenset({b"multipart/form-data", b"application/x-www-form-urlencoded"})
PICKLES = PICKLED.encode()


class PredictionRecorder(Protocol):
    """Records the predictions of one request to a batchable method; see ``audited.AuditedMethod``."""

    def reserve_request(self, service: Any, context: RequestContext, request: Any) -> None:
        """Fills ``context.reserved`` for a request with an ``Idempotency-Key``."""

    def record_response(self, service: Any, context: RequestContext, request: Any, response: Any) -> bool:
        """Fills ``context.prediction_ids``; true if it wrote into ``response``."""


@dataclass(frozen=True, slots=True)
class Route:
    """One endpoint.

    Attributes:
        guarded: It is audited, or the plugin's own: limits and media types are the plugin's. Any other endpoint reads
            whatever BentoML reads there.
        audit: It is one of ``/audit/...``, which other people's pages may not ask.
        limit: Of a guarded one, bytes that a body may have.
        media_types: Of a guarded one, what is read beside JSON.
        reads_json: Its input is JSON where it is sent as such.
        shape: The schema of its input.
        files: Names of its fields that are files.
        batched: It merges several requests into one call.
        recorder: Records its predictions.
        direct: Answers past BentoML.
    """

    guarded: bool
    audit: bool
    limit: int
    media_types: frozenset[bytes]
    reads_json: bool
    shape: Shape
    files: frozenset[str]
    batched: bool
    recorder: PredictionRecorder | None
    direct: Direct | None


def is_ours(method: Any) -> bool:
    """Whether an endpoint is the plugin's own, such as ``/audit/explain``."""
    own: bool = method.func.__module__.startswith("audit_service.")
    return own


def route_of(method: Any, service_class: Any) -> Route:
    """What is known about the endpoint of a method of a service's class."""
    declared = method.input_spec.mime_type().encode()
    recorder, ours = getattr(method.func, "audited_method", None), is_ours(method)
    guarded = ours or recorder is not None
    return Route(
        guarded=guarded,
        audit=ours and method.route.startswith("/audit/"),
        limit=service_class.max_body_bytes(recorder) if guarded else 0,
        media_types=frozenset({JSON, declared}) if ours else FORMS | {JSON, declared},
        reads_json=declared in (JSON, b"multipart/form-data"),
        shape=method.input_spec,
        files=frozenset(method.input_spec.multipart_fields),
        batched=method.batchable,
        recorder=recorder,
        direct=service_class.direct.get(method.route),
    )


def media_type(content_type: bytes) -> bytes:
    """The media type of a header ``Content-Type``, read as BentoML reads it: without one, a body is JSON."""
    if content_type == JSON or not content_type:
        return JSON
    return content_type.decode("latin-1").split(";")[0].strip().lower().encode("latin-1", "replace") or JSON


def is_json(kind: bytes) -> bool:
    """Whether a media type is JSON: ``application/json``, or one with the suffix of RFC 6839."""
    return kind == JSON or (kind.endswith(b"+json") and kind.count(b"/") == 1)


def check_media_type(content_type: bytes, kind: bytes, route: Route) -> None:
    """Refuses what a guarded endpoint does not read.

    Args:
        content_type: The header; a browser lets any page post without one, so ``/audit/...`` asks for it.
        kind: Its media type.
        route: The endpoint.

    Raises:
        MediaTypeError: the endpoint does not read that.
    """
    if route.audit and not content_type:
        raise MediaTypeError(f"there is no content type; send {_allowed(route)}")
    if is_json(kind) or kind in route.media_types or kind.partition(b"/")[0] + b"/*" in route.media_types:
        return
    raise MediaTypeError(f"content type {kind.decode('latin-1')[:80]!a} is not read here; send {_allowed(route)}")


def check_batch(value: Any, route: Route) -> None:
    """Refuses what a batchable method cannot merge with other requests, since they would all fail with it.

    Args:
        value: The request's JSON.
        route: A batched one; BentoML gives it a single argument.

    Raises:
        BadRequestError: that is a single value, or an empty list.
    """
    name = next(iter(route.shape.model_fields))
    given = value.get(name, value) if isinstance(value, dict) else value
    if not isinstance(given, (list, dict)) or given == []:
        raise BadRequestError("this method answers many at once: send a list of at least one", field=name)


def _allowed(route: Route) -> str:
    return ", ".join(sorted(name.decode() for name in route.media_types))
