"""Every private name of BentoML that this package uses, and nothing else.

BentoML promises nothing about them: when one goes, this module is what has to be mended. Each function says what it
uses, what for, and what breaks without it. No other module may name them; ``tests/project/test_bentoml_internals.py``
looks. The range of versions in ``pyproject.toml`` is the one in which they have been seen to work.
"""

from __future__ import annotations

import functools
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from _bentoml_impl.serde import Payload, PickleSerde
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

PICKLED = PickleSerde.media_type
"""The media type of what ``bentoml.depends`` sends to a service beside it: pickles. Were it named otherwise, an audited
service that another one depends on would answer 415."""

LOGGERS = ("bentoml", "bentoml._internal.server.http_app", "bentoml.serve")
"""The loggers that quote a request's body when its validation fails. Were one renamed, inputs would be in its log."""

OBSERVERS = frozenset({"RunnerTrafficMetricsMiddleware", "OpenTelemetryMiddleware", "AccessLogMiddleware"})
"""Class names of BentoML's middlewares that only look at requests and responses. Were one renamed, it would see our
errors in BentoML's shape; nothing else changes."""


PAGES = frozenset({"index", "static_content", "assets"})
"""Names of the routes of BentoML's page at ``/``, which loads a script of a third party. Were one renamed, an audited
service would serve that page again; ``tests/service/test_middleware.py`` asks."""


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


def private_socket(service: Any) -> str | None:
    """The Unix socket on which BentoML has this process serve ``service`` to the services beside it; ``None`` where it
    listens on anything else, or others than this user may open the socket.

    BentoML gives a service that another one depends on a Unix socket in a folder of its own, and tells every process
    the address of each service: ``Service.url`` reads it. The entry service, one that is served alone
    (``--service-name``), and all of them on Windows or under ``BENTOML_NO_UDS`` listen on TCP, where nobody knows who
    asks. Were ``Service.url`` to go, no socket would count as private, and pickles would be refused.
    """
    parts = urlsplit(getattr(service, "url", None) or "")
    if parts.scheme != "file":
        return None
    path = unquote(parts.path)
    try:
        folder, socket = os.stat(os.path.dirname(path)), os.stat(path)
    except OSError:
        return None
    mine = folder.st_uid == socket.st_uid == os.geteuid()
    closed = not folder.st_mode & (stat.S_IRWXG | stat.S_IRWXO)
    return path if mine and closed and stat.S_ISSOCK(socket.st_mode) else None


def unpickled(body: bytes, headers: Mapping[str, str]) -> Any:
    """What BentoML's client pickled; only ever for what came through a ``private_socket``.

    Uses ``PickleSerde``: the arrays of a pickle lie behind it, and a header says how long each is. Without it, what
    other services ask of a batchable method could not be recorded.

    Raises:
        Exception: anything that unpickling may raise.
    """
    return PickleSerde().deserialize_value(Payload((body,), headers))


def pickled(value: Any) -> tuple[bytes, dict[str, str]]:
    """``value`` as BentoML's client unpickles it, and the headers that go with it; see ``unpickled``."""
    payload = PickleSerde().serialize_value(value)
    return b"".join(payload.data), dict(payload.metadata)


def ask_in_json(wanted: Callable[[Any], bool]) -> None:
    """Has every ``bentoml.depends`` on a ``wanted`` service ask it in JSON, unless it is beside on a Unix socket.

    Wraps ``Dependency.get``, which asks in JSON where it has a ``url`` and pickles otherwise, also over TCP. Without
    it, a service that refuses pickles from elsewhere could not be depended on there.

    Args:
        wanted: Given a service.
    """
    original = Dependency.get
    if wanted in getattr(original, "wanted", ()):
        return

    @functools.wraps(original)
    def get(dependency: Any, *args: Any, **options: Any) -> Any:
        on = dependency.on
        if on is not None and not (dependency.url or dependency.deployment) and wanted(on):
            url = on.url
            if url and urlsplit(url).scheme != "file":
                dependency.url = url
        return original(dependency, *args, **options)

    get.wanted = (*getattr(original, "wanted", ()), wanted)  # type: ignore[attr-defined]
    Dependency.get = get


def when_an_app_is_made(
    change: Callable[[Any, Any], None], *, instead: str, before: Callable[[Any], None] | None = None
) -> None:
    """Has ``change`` called with every service and its ASGI application, once the application is made.

    Wraps ``_bentoml_sdk.Service.to_asgi``, once for each ``change``: ``Service.add_asgi_middleware`` is public, but
    takes a service, not a class that services inherit from, and puts a middleware inside BentoML's own time and
    concurrency limits, whose errors would keep their shape.

    Args:
        change: Given the service and the application (a ``starlette`` one, with ``user_middleware``).
        instead: What to do by hand should BentoML have no such method, for the message.
        before: Given the service before its application is made of it.

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
        if before is not None:
            before(service)
        app = original(service, *args, **kwargs)
        change(service, app)
        return app

    to_asgi.changes = (*getattr(original, "changes", ()), change)  # type: ignore[attr-defined]
    Service.to_asgi = to_asgi
