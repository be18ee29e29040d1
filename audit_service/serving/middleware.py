"""What every request passes before BentoML sees it, and every error after.

``AuditMiddleware`` answers 415 to content types that nobody declared (pickles first of all), 413 to bodies that are too
long and 400 to bodies that are not JSON; it gives every error the one shape of ``errors.error_body``; and it adds the
header ``X-Prediction-Id`` to what ``@audited`` recorded.

BentoML lets a *service* take a middleware (``Service.add_asgi_middleware``) but not a class that services inherit
from. ``MiddlewareMixin`` therefore adds it whenever BentoML makes the application of a service whose class inherits
from it (``bentoml_internals.when_an_app_is_made``).
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import bentoml
from starlette.middleware import Middleware

from audit_service.bentoml_internals import OBSERVERS, when_an_app_is_made
from audit_service.errors import BodyTooLargeError, BrokenJsonError, MediaTypeError, ServiceError, error_body
from audit_service.serving.error_responses import uniform_body
from audit_service.serving.log_redaction import hide_inputs_in_logs
from audit_service.serving.request_context import RequestContext, current_request

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Direct = Callable[[Any, Any], Awaitable[App | None]]
"""From a service's instance and the parsed body to the response; ``None`` leaves the answer to BentoML."""

JSON = b"application/json"
FORMS = frozenset({b"multipart/form-data", b"application/x-www-form-urlencoded"})
SYSTEM_PATHS = frozenset({"/livez", "/healthz", "/readyz", "/metrics", "/schema.json", "/docs.json", "/"})


class PredictionRecorder(Protocol):
    """Records the predictions of one request to a batchable method; see ``audited.AuditedMethod``."""

    def reserve_request(self, service: Any, context: RequestContext, request: Any) -> None:
        """Fills ``context.reserved`` for a request with an ``Idempotency-Key``."""

    def record_response(self, service: Any, context: RequestContext, request: Any, response: Any) -> bool:
        """Fills ``context.prediction_ids``; true if it wrote into ``response``."""


@dataclass(frozen=True, slots=True)
class Route:
    """What the middleware knows about one endpoint."""

    media_types: frozenset[bytes]
    reads_json: bool
    fields: tuple[str, ...]
    batched: bool
    recorder: PredictionRecorder | None
    direct: Direct | None


class MiddlewareMixin:
    """Base of service classes whose requests pass ``AuditMiddleware``."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        by_hand = "call service.add_asgi_middleware(AuditMiddleware, service=service) after the class definition"
        when_an_app_is_made(_add_middleware, instead=by_hand)

    @classmethod
    def max_body_bytes(cls) -> int:
        """Longer bodies get 413. Asked once, when the server starts."""
        return 1024 * 1024

    direct: ClassVar[Mapping[str, Direct]] = {}
    """Routes answered from the parsed JSON body past BentoML's own parsing and limits, a millisecond sooner."""


def _add_middleware(service: Any, app: Any) -> None:
    if issubclass(service.inner, MiddlewareMixin) and not any(m.cls is AuditMiddleware for m in app.user_middleware):
        names = [getattr(m.cls, "__name__", "") for m in app.user_middleware]
        # Those that only look stay outside: metrics and logs see what the client sees.
        place = next((i for i, name in enumerate(names) if name not in OBSERVERS), len(names))
        app.user_middleware.insert(place, Middleware(AuditMiddleware, service=service))


class AuditMiddleware:
    """ASGI middleware in front of one service; costs some ten microseconds a request."""

    def __init__(self, app: App, *, service: Any) -> None:
        hide_inputs_in_logs()
        self.app = app
        self.limit = service.inner.max_body_bytes()
        prefix = "/" + (service.path_prefix or "").strip("/")
        prefix = "" if prefix == "/" else prefix
        direct = service.inner.direct
        self.routes = {
            prefix + method.route: _route(method, direct.get(method.route)) for method in service.apis.values()
        }
        self.system_paths = SYSTEM_PATHS | {prefix + path for path in SYSTEM_PATHS}
        self.mounts = tuple(path.rstrip("/") + "/" for _, path, _ in service.mount_apps)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        path = scope["path"]
        route = self.routes.get(path)
        if route is not None and scope["method"] == "POST":
            return await self._call(route, scope, receive, send)
        if path in self.system_paths or (self.mounts and (path + "/").startswith(self.mounts)):
            return await self.app(scope, receive, send)
        return await self.app(scope, receive, _Reply(send, None, self.routes))

    async def _call(self, route: Route, scope: Scope, receive: Receive, send: Send) -> None:
        content_type = length = key = b""
        for name, value in scope["headers"]:
            if name == b"content-type":
                content_type = value
            elif name == b"content-length":
                length = value
            elif name == b"idempotency-key":
                key = value
        try:
            is_json = _check_media_type(content_type, route)
            body = await self._read(length, receive)
            if body is None:
                return  # the client went away before it had sent everything
            value = parse_json(body) if is_json and route.reads_json else None
            context = RequestContext(batched=route.batched, idempotency_key=key.decode("latin-1") or None)
            if key and route.batched and route.recorder is not None:
                service = bentoml.get_current_service()
                await asyncio.to_thread(route.recorder.reserve_request, service, context, value)
        except ServiceError as error:
            return await _answer(send, error)
        if route.direct is not None:
            response = await route.direct(bentoml.get_current_service(), value)
            if response is not None:
                return await response(scope, receive, send)
        token = current_request.set(context)
        try:
            await self.app(scope, _replay(body, receive), _Reply(send, context, self.routes, route, value))
        finally:
            current_request.reset(token)

    async def _read(self, length: bytes, receive: Receive) -> bytes | None:
        if length and (not length.isdigit() or int(length) > self.limit):
            raise self._too_large()
        message = await receive()
        if message["type"] != "http.request":
            return None
        body: bytes = message.get("body", b"")
        while message.get("more_body"):
            if len(body) > self.limit:
                raise self._too_large()
            message = await receive()
            if message["type"] != "http.request":
                return None
            body += message.get("body", b"")
        if len(body) > self.limit:
            raise self._too_large()
        return body

    def _too_large(self) -> BodyTooLargeError:
        return BodyTooLargeError(f"the body is longer than {self.limit} bytes; send less")


class _Reply:
    """Passes a response on; holds back errors to shape them, and answers of batchable methods to record them."""

    __slots__ = ("chunks", "context", "request", "route", "routes", "send", "start")

    def __init__(
        self,
        send: Send,
        context: RequestContext | None,
        routes: dict[str, Route],
        route: Route | None = None,
        request: Any = None,
    ) -> None:
        self.send = send
        self.context = context
        self.routes = routes
        self.route = route
        self.request = request
        self.start: Message | None = None
        self.chunks: list[bytes] = []

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            if message["status"] >= 400 or (self.route is not None and self.route.batched):
                self.start = message
                return
            self._name_predictions(message)
        elif self.start is not None:
            self.chunks.append(message.get("body", b""))
            if message.get("more_body"):
                return
            message = {"type": "http.response.body", "body": self._changed_body(self.start)}
            start, self.start = self.start, None
            await self.send(start)
        await self.send(message)

    def _changed_body(self, start: Message) -> bytes:
        body = b"".join(self.chunks)
        content_type = _header(start, b"content-type").decode("latin-1")
        if start["status"] >= 400:
            fields = self.route.fields if self.route is not None else ()
            problem = uniform_body(start["status"], content_type, body, endpoints=self.routes, fields=fields)
            if problem is not None:
                body = json.dumps(problem).encode()
                _replace_headers(start, body, JSON)
            return body
        if self.route is not None and self.route.recorder is not None and content_type.startswith("application/json"):
            body = self._record_batch(self.route.recorder, start, body)
        return body

    def _record_batch(self, recorder: PredictionRecorder, start: Message, body: bytes) -> bytes:
        # A batchable method sees a list merged from several requests; only here is it known whose item is whose.
        assert self.context is not None
        try:
            response = json.loads(body)
            service = bentoml.get_current_service()
            if recorder.record_response(service, self.context, self.request, response):
                body = json.dumps(response).encode()
                _replace_headers(start, body, JSON)
        except Exception:  # whatever goes wrong with the record, the prediction goes out
            logging.getLogger(__name__).exception("predictions of a batchable method were not recorded")
        self._name_predictions(start)
        return body

    def _name_predictions(self, start: Message) -> None:
        if self.context is not None and self.context.prediction_ids:
            ids = ",".join(self.context.prediction_ids).encode("latin-1")
            start["headers"] = [*start.get("headers", ()), (b"x-prediction-id", ids)]


def _route(method: Any, direct: Direct | None) -> Route:
    declared = method.input_spec.mime_type().encode()
    ours = method.func.__module__.startswith("audit_service.")
    return Route(
        media_types=frozenset({JSON, declared}) if ours else FORMS | {JSON, declared},
        reads_json=declared in (JSON, b"multipart/form-data"),
        fields=tuple(method.input_spec.model_fields),
        batched=method.batchable,
        recorder=getattr(method.func, "audited_method", None),
        direct=direct,
    )


def _check_media_type(raw: bytes, route: Route) -> bool:
    """Whether the body is JSON (also without a content type, as BentoML reads it); refuses undeclared types."""
    if raw == JSON or not raw:
        return True
    kind = raw.partition(b";")[0].strip().lower()
    if kind not in route.media_types and kind.partition(b"/")[0] + b"/*" not in route.media_types:
        allowed = ", ".join(sorted(name.decode() for name in route.media_types))
        raise MediaTypeError(f"content type {kind.decode('latin-1')[:80]!r} is not read here; send {allowed}")
    return kind == JSON


def _refuse_constant(name: str) -> Any:
    raise BrokenJsonError(f"{name} is not JSON; send a number or null")


_decoder = json.JSONDecoder(parse_constant=_refuse_constant)


def parse_json(body: bytes) -> Any:
    """Parses strict JSON: UTF-8, no ``NaN`` or ``Infinity``, no half of a surrogate pair. An empty body is ``{}``.

    Raises:
        BrokenJsonError: it is not; the message says where.
    """
    if not body:
        return {}
    try:
        value = _decoder.decode(body.decode("utf-8"))
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
    except ValueError:
        raise BrokenJsonError("the body holds a number that is too long") from None
    return value


def _replay(body: bytes, receive: Receive) -> Receive:
    pending = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return pending.pop() if pending else await receive()

    return replay


def _header(start: Message, wanted: bytes) -> bytes:
    return next((value for name, value in start.get("headers", ()) if name.lower() == wanted), b"")


def _replace_headers(start: Message, body: bytes, content_type: bytes) -> None:
    kept = [pair for pair in start.get("headers", ()) if pair[0].lower() not in (b"content-length", b"content-type")]
    start["headers"] = [*kept, (b"content-type", content_type), (b"content-length", str(len(body)).encode())]


async def _answer(send: Send, error: ServiceError) -> None:
    body = json.dumps(error_body(error.code, error.message, error.field)).encode()
    start: Message = {"type": "http.response.start", "status": error.status, "headers": []}
    _replace_headers(start, body, JSON)
    await send(start)
    await send({"type": "http.response.body", "body": body})
