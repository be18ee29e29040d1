"""What metrics and logs see of a request's path: one of a service's own, or that it is unknown.

BentoML labels its series, and fills its access log, with the path as it came. Whoever asks for a thousand paths that
nobody serves would make thousands of series that never go again. ``PathLabels`` is outside of those that look, and
gives them the route in place of the path; ``restore_path``, inside, gives the application the path itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from starlette.routing import BaseRoute, Match

from audit_service.serving.asgi import App, Receive, Scope, Send

UNKNOWN = "/{unknown}"
"""The label of every path that is no route's."""

_ASKED = "audit_service.path"
"""The key of a scope that keeps the path as it came."""


class PathLabels:
    """ASGI middleware outside of everything that looks at paths.

    Args:
        app: What is behind it, with ``restore_path`` somewhere inside.
        routes: The application's.
    """

    def __init__(self, app: App, *, routes: Iterable[BaseRoute]) -> None:
        self.app = app
        self._routes = list(routes)
        self._known = {path for route in self._routes if "{" not in (path := getattr(route, "path", "{"))}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes one request on with the label for its path."""
        path = scope.get("path")
        if path is not None and path not in self._known:
            raw = {} if "raw_path" not in scope else {"raw_path": scope["raw_path"]}
            label = self._label(scope)
            scope[_ASKED] = {"path": path, **raw}
            scope["path"] = label
            scope.update({name: label.encode() for name in raw})
        await self.app(scope, receive, send)

    def _label(self, scope: Scope) -> str:
        for route in self._routes:
            if route.matches(scope)[0] is not Match.NONE:
                return _template(route)
        return UNKNOWN


def restore_path(scope: Scope) -> None:
    """Gives a scope that ``PathLabels`` has seen its own path again."""
    scope.update(scope.pop(_ASKED, {}))


def _template(route: Any) -> str:
    path = str(getattr(route, "path", UNKNOWN))
    return path if hasattr(route, "endpoint") else path + "/{path}"  # a mount stands for all below it
