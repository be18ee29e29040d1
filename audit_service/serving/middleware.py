"""What every request passes before BentoML sees it, and every error after.

At the plugin's own endpoints and those of audited methods, ``AuditMiddleware`` answers 415 to content types that nobody
declared, 413 to bodies that are too long and 400 to bodies that are not JSON; it gives every error the one shape of
``errors.error_body``; and it adds the header ``X-Prediction-Id`` to what ``@audited`` recorded.

Pickles, in which ``bentoml.depends`` asks, are read at no endpoint unless they come through the private Unix socket
that BentoML made for this service (``bentoml_internals.private_socket``): everywhere else they get 415.

BentoML lets a *service* take a middleware (``Service.add_asgi_middleware``) but not a class that services inherit
from. ``MiddlewareMixin`` therefore adds it whenever BentoML makes the application of a service whose class inherits
from it (``bentoml_internals.when_an_app_is_made``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import bentoml
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from audit_service.bentoml_internals import (
    DESCRIPTION,
    OBSERVERS,
    PAGES,
    ask_in_json,
    private_socket,
    unpickled,
    when_an_app_is_made,
)
from audit_service.errors import BodyTooLargeError, MediaTypeError, ServiceError
from audit_service.serving.asgi import App, CorsHeaders, Receive, Scope, Send, answer_error, replay
from audit_service.serving.cross_site import Sites
from audit_service.serving.error_responses import no_such_endpoint
from audit_service.serving.form_body import check_form
from audit_service.serving.json_body import parse_json
from audit_service.serving.log_redaction import hide_inputs_in_logs
from audit_service.serving.openapi import description_route
from audit_service.serving.path_labels import PathLabels, restore_path
from audit_service.serving.reply import Reply, rows
from audit_service.serving.request_context import RequestContext, current_request
from audit_service.serving.routes import (
    FORMS,
    PICKLES,
    Direct,
    Route,
    check_batch,
    check_media_type,
    is_json,
    is_ours,
    media_type,
    route_of,
)

SYSTEM_PATHS = frozenset({"/livez", "/healthz", "/readyz", "/metrics", "/schema.json", "/docs.json"})


class MiddlewareMixin:
    """Base of service classes whose requests pass ``AuditMiddleware``."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        by_hand = "call service.add_asgi_middleware(AuditMiddleware, service=service) after the class definition"
        when_an_app_is_made(_add_middleware, instead=by_hand, before=_without_our_endpoints)
        ask_in_json(_has_middleware)

    @classmethod
    def max_body_bytes(cls, audited: Any = None) -> int:
        """Longer bodies get 413; asked once for each guarded endpoint, when the server starts.

        Args:
            audited: What ``@audited`` knows of the endpoint's method; ``None`` for one of the plugin's own.
        """
        return 1024 * 1024

    @classmethod
    def public_sites(cls) -> tuple[Iterable[str], Iterable[str]]:
        """Names of the service, and addresses of other pages, that ``/audit/...`` may be asked under and by."""
        return (), ()

    @classmethod
    def is_switched_on(cls) -> bool:
        """Whether there is a middleware, and endpoints of the plugin, at all; asked when the server starts."""
        return True

    direct: ClassVar[Mapping[str, Direct]] = {}
    """Routes answered from the parsed JSON body past BentoML's own parsing and limits, a millisecond sooner."""

    may_be_depended_on: ClassVar[bool] = True
    """Whether pickles are read from the private socket, as other services' ``bentoml.depends`` sends them."""


def _has_middleware(service: Any) -> bool:
    return issubclass(service.inner, MiddlewareMixin)


def _without_our_endpoints(service: Any) -> None:
    if _has_middleware(service) and not service.inner.is_switched_on():
        for name in [name for name, method in service.apis.items() if is_ours(method)]:
            del service.apis[name]


def _add_middleware(service: Any, app: Any) -> None:
    if not _has_middleware(service) or not service.inner.is_switched_on():
        return
    if any(one.cls is AuditMiddleware for one in app.user_middleware):
        return
    kept = [route for route in app.routes if getattr(route, "name", None) not in PAGES | {DESCRIPTION}]
    app.router.routes[:] = [description_route(service), *kept]
    cors = next((one.kwargs for one in app.user_middleware if one.cls is CORSMiddleware), None)
    names = [getattr(one.cls, "__name__", "") for one in app.user_middleware]
    # Those that only look stay outside: metrics and logs see what the client sees.
    place = next((i for i, name in enumerate(names) if name not in OBSERVERS), len(names))
    app.user_middleware.insert(place, Middleware(AuditMiddleware, service=service, cors=cors))
    app.user_middleware.insert(0, Middleware(PathLabels, routes=app.routes))


class AuditMiddleware:
    """ASGI middleware in front of one service; costs some ten microseconds a request.

    Args:
        app: What is behind it.
        service: The service.
        cors: Options of the service's ``CORSMiddleware``; ``None`` where it has none.
    """

    def __init__(self, app: App, *, service: Any, cors: Mapping[str, Any] | None = None) -> None:
        hide_inputs_in_logs()
        self.app = app
        self.owner = service.inner
        self.cors = CorsHeaders(cors)
        hosts, origins = self.owner.public_sites()
        self.sites = Sites.of(hosts, origins, cors)
        self.socket = private_socket(service) if self.owner.may_be_depended_on else None
        prefix = "/" + (service.path_prefix or "").strip("/")
        prefix = "" if prefix == "/" else prefix
        self.routes = {prefix + method.route: route_of(method, self.owner) for method in service.apis.values()}
        self.system_paths = SYSTEM_PATHS | {prefix + path for path in SYSTEM_PATHS}
        self.mounts = tuple(path.rstrip("/") + "/" for _, path, _ in service.mount_apps)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request."""
        restore_path(scope)
        path = scope.get("path", "")
        route = self.routes.get(path)
        mounted = route is None and self.mounts and (path + "/").startswith(self.mounts)
        if scope["type"] != "http" or mounted:
            return await self.app(scope, receive, send)
        if path.endswith("\n"):
            # The application's patterns end with `$`, which passes it: it would answer what has met no check here.
            return await answer_error(self.cors.around(scope, send), no_such_endpoint(self.routes))
        headers = _headers(scope)
        kind = media_type(headers.get(b"content-type", b""))
        if kind == PICKLES and not self._came_privately(scope):
            error = MediaTypeError("pickles are read here from the services beside this one only; send JSON")
            return await answer_error(self.cors.around(scope, send), error)
        if route is not None and route.guarded and scope["method"] == "POST":
            return await self._guarded(route, kind, headers, scope, receive, send)
        system = path in self.system_paths
        reply = Reply(send, self.cors.around(scope, send), self.routes, route, system=system)
        return await self.app(scope, receive, reply)

    def _came_privately(self, scope: Scope) -> bool:
        """Whether a request came through the private socket: the server says which one it accepted it on."""
        server = scope.get("server")
        if self.socket is None:
            return False
        # Servers that do not name Unix sockets name none; TCP they always name, with its port.
        return server is None or (server[0] == self.socket and server[1] is None)

    async def _guarded(
        self, route: Route, kind: bytes, headers: Mapping[bytes, bytes], scope: Scope, receive: Receive, send: Send
    ) -> None:
        key = headers.get(b"idempotency-key", b"").decode("latin-1") or None
        context = RequestContext(self.owner, batched=route.batched, idempotency_key=key, pickled=kind == PICKLES)
        value = None
        try:
            if not context.pickled:
                content_type = headers.get(b"content-type", b"")
                if route.audit:
                    self.sites.check(*(headers.get(name, b"").decode("latin-1") for name in (b"host", b"origin")))
                check_media_type(content_type, kind, route)
                body = await _read(headers.get(b"content-length", b""), receive, route.limit)
            elif route.batched:  # by BentoML's own protocol, from a service beside this one: as long as that sends it
                body = await _read(b"", receive, None)
            else:
                return await self._passed(route, context, None, scope, receive, send)
            if body is None:
                return  # the client went away before it had sent everything
            if context.pickled:
                value = _unpickled(body, headers)
            elif kind in FORMS:
                await check_form(content_type, body, receive, route.files)
            elif is_json(kind) and route.reads_json:
                value = parse_json(body)
                if route.batched:
                    check_batch(value, route)
            if key and route.batched and route.recorder is not None:
                service = bentoml.get_current_service()
                await asyncio.to_thread(route.recorder.reserve_request, service, context, value)
        except ServiceError as error:
            return await answer_error(self.cors.around(scope, send), error)
        await self._passed(route, context, value, scope, replay(body, receive), send)

    async def _passed(
        self, route: Route, context: RequestContext, value: Any, scope: Scope, receive: Receive, send: Send
    ) -> None:
        token = current_request.set(context)
        try:
            if route.direct is not None:
                response = await route.direct(bentoml.get_current_service(), value)
                if response is not None:
                    return await response(scope, receive, self.cors.around(scope, send))
            reply = Reply(send, self.cors.around(scope, send), self.routes, route, context, value)
            await self.app(scope, receive, reply)
        finally:
            current_request.reset(token)


async def _read(length: bytes, receive: Receive, limit: int | None) -> bytes | None:
    """The whole body; ``None`` if the client went away.

    Raises:
        BodyTooLargeError: it is longer than ``limit`` bytes, or says that it will be.
    """
    if limit is not None and length and (not length.isdigit() or int(length) > limit):
        raise _too_large(limit)
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if limit is not None and size > limit:
            raise _too_large(limit)
        if not message.get("more_body"):
            return b"".join(parts)


def _too_large(limit: int) -> BodyTooLargeError:
    return BodyTooLargeError(f"the body is longer than {limit} bytes; send less")


def _headers(scope: Scope) -> dict[bytes, bytes]:
    """The headers of the request; of several with one name the first, which is the one that BentoML reads."""
    return dict(reversed([*scope["headers"]]))


def _unpickled(body: bytes, headers: Mapping[bytes, bytes]) -> Any:
    try:
        value = unpickled(body, {name.decode("latin-1"): one.decode("latin-1") for name, one in headers.items()})
    except Exception:  # BentoML finds the same, and answers it
        return None
    return {name: rows(one) for name, one in value.items()} if isinstance(value, dict) else rows(value)
