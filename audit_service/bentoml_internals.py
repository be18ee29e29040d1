"""Every private name of BentoML that this package uses, and nothing else.

BentoML promises nothing about them: when one goes, this module is what has to be mended. Each function says what it
uses, what for, and what breaks without it. No other module may name them; ``tests/project/test_bentoml_internals.py``
looks. The range of versions in ``pyproject.toml`` is the one in which they have been seen to work.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from _bentoml_sdk import Service
from _bentoml_sdk.method import APIMethod
from _bentoml_sdk.service.dependency import Dependency
from bentoml._internal.configuration.containers import BentoMLContainer

ServiceDependency = Dependency
"""``_bentoml_sdk.service.dependency.Dependency``, what ``bentoml.depends`` returns.

BentoML starts the services that a class's dependencies name, and calls their ``get`` for what the class sees as its
attribute; ``engine.client.EngineDependency`` overrides ``get`` and ``url``. Without it the engine would be reached by
BentoML's own proxy, which pickles, waits a minute, and is probed by ``/readyz``.
"""

LOGGERS = ("bentoml", "bentoml._internal.server.http_app", "bentoml.serve")
"""The loggers that quote a request's body when its validation fails. Were one renamed, inputs would be in its log."""

OBSERVERS = frozenset({"RunnerTrafficMetricsMiddleware", "OpenTelemetryMiddleware", "AccessLogMiddleware"})
"""Class names of BentoML's middlewares that only look at requests and responses. Were one renamed, it would see our
errors in BentoML's shape; nothing else changes."""


def home() -> Path:
    """BentoML's home folder, ``BENTOML_HOME`` or its default; uses ``BentoMLContainer.bentoml_home``.

    There is no public name for it. Without it, a service inside a bento has nowhere to keep its predictions.
    """
    return Path(BentoMLContainer.bentoml_home.get())


def api_functions(service_class: type) -> Iterator[Callable[..., Any]]:
    """The functions below ``@bentoml.api`` on a class, inherited ones included; uses ``APIMethod.func``.

    Without it, names that ``@audited`` cannot find would be reported with the first request instead of at the start.
    """
    methods = (getattr(service_class, name, None) for name in dir(service_class))
    return (method.func for method in methods if isinstance(method, APIMethod))


def when_an_app_is_made(change: Callable[[Any, Any], None], *, instead: str) -> None:
    """Has ``change`` called with every service and its ASGI application, once the application is made.

    Wraps ``_bentoml_sdk.Service.to_asgi``, once for each ``change``: ``Service.add_asgi_middleware`` is public, but
    takes a service, not a class that services inherit from, and puts a middleware inside BentoML's own time and
    concurrency limits, whose errors would keep their shape.

    Args:
        change: Given the service and the application (a ``starlette`` one, with ``user_middleware``).
        instead: What to do by hand should BentoML have no such method, for the message.

    Raises:
        TypeError: this BentoML has no ``Service.to_asgi``.
    """
    original = getattr(Service, "to_asgi", None)
    if original is None:
        raise TypeError(f"this BentoML has no Service.to_asgi; {instead}, and tell the authors of bento-audit")
    if change in getattr(original, "changes", ()):
        return

    @functools.wraps(original)
    def to_asgi(service: Any, *args: Any, **kwargs: Any) -> Any:
        app = original(service, *args, **kwargs)
        change(service, app)
        return app

    to_asgi.changes = (*getattr(original, "changes", ()), change)  # type: ignore[attr-defined]
    Service.to_asgi = to_asgi
