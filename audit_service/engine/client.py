"""How a service reaches the engine: JSON over HTTP, on a Unix socket or by URL, with a deadline of its own.

BentoML's own proxy pickles its arguments, waits a minute, and is probed by ``/readyz``; ``EngineDependency`` lets
BentoML start the engine and gives the service this client instead.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

import aiohttp

from audit_service.bentoml_internals import ServiceDependency
from audit_service.errors import EngineTimeoutError, EngineUnavailableError, service_error
from audit_service.schemas import EngineItem

KEEP_ALIVE_S = 4.0
"""Below the five seconds after which the server closes an idle connection."""

CONNECTIONS = 64

THUMBNAIL_S = 5.0
"""How long a picture is waited for."""

SELECTING_S = 5.0
"""How long a service waits to hear whether training examples are there."""

NO_ENGINE = "off:"
"""The address of an engine where there is none: BentoML starts no service that has an address."""


class Engine(Protocol):
    """What a service sees of the engine."""

    async def explain(self, config: str, items: Sequence[EngineItem], deadline_s: float) -> list[dict[str, Any]]:
        """For each item ``{"explanation": {...}}`` or ``{"error": {...}, "status": ...}``."""

    async def thumbnail(self, config: str, handle: str) -> tuple[bytes, str]:
        """The picture of a training example, with its media type."""

    async def selected(self, config: str, group: Mapping[str, str] | None, examples: Sequence[str] | None) -> int:
        """How many training examples are in a group, or have these handles; ``InputError`` where there are none."""

    async def status(self, config: str) -> dict[str, Any]:
        """What is loaded for ``config``: ``{"state", "reason", ...}``."""

    def another(self) -> Engine:
        """The same engine for another event loop, with connections of its own."""

    async def close(self) -> None:
        """Closes connections."""


class HttpEngine:
    """An engine in another process.

    Args:
        url: ``file://`` with the path of a Unix socket, or ``http(s)://``.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._client: aiohttp.ClientSession | None = None

    async def explain(self, config: str, items: Sequence[EngineItem], deadline_s: float) -> list[dict[str, Any]]:
        """Asks the engine.

        Raises:
            EngineUnavailableError: it is down, loading, or does not answer before the deadline.
        """
        request = {
            "config": config,
            "items": [item.model_dump(exclude_none=True) for item in items],
            "deadline_s": deadline_s,
        }
        answer = await self._post("/explain", request, deadline_s)
        answers: list[dict[str, Any]] = answer["items"]
        return answers

    async def thumbnail(self, config: str, handle: str) -> tuple[bytes, str]:
        """Asks for the picture of a training example.

        Raises:
            ServiceError: there is none.
            EngineUnavailableError: the engine is down, loading, or does not answer in time.
        """
        answer = await self._post("/thumbnail", {"config": config, "example_handle": handle}, THUMBNAIL_S)
        return base64.b64decode(answer["content"]), str(answer["media_type"])

    async def selected(self, config: str, group: Mapping[str, str] | None, examples: Sequence[str] | None) -> int:
        """Asks how many training examples are selected.

        Raises:
            ServiceError: there is no such group or handle (400), or the engine cannot say.
        """
        request = {"config": config, "group": group, "examples": examples}
        answer = await self._post("/selected", request, SELECTING_S)
        count: int = answer["examples"]
        return count

    async def status(self, config: str) -> dict[str, Any]:
        """Asks what is loaded; the same errors as ``explain``."""
        answer: dict[str, Any] = await self._post("/status", {"config": config}, 2.0)
        return answer

    def another(self) -> HttpEngine:
        """The same engine with connections of its own."""
        return HttpEngine(self.url)

    async def close(self) -> None:
        """Closes connections."""
        if self._client is not None:
            await self._client.close()
            self._client = None

    async def _post(self, path: str, request: Mapping[str, Any], deadline_s: float) -> Any:
        content = json.dumps(request, allow_nan=False).encode()
        try:
            async with asyncio.timeout(deadline_s):
                return _body(*await self._send(path, content))
        except TimeoutError:
            raise EngineTimeoutError(
                f"the explanation engine did not answer within {deadline_s:.1f} s; ask again shortly", retry_after=2
            ) from None
        except (aiohttp.ClientError, OSError):
            raise EngineUnavailableError(
                "the explanation engine cannot be reached; predictions go on, ask for the explanation again later",
                retry_after=5,
            ) from None

    async def _send(self, path: str, content: bytes) -> tuple[int, Mapping[str, str], bytes]:
        if self._client is None:
            self._client = _client(self.url)
        try:
            return await _post(self._client, path, content)
        except aiohttp.ClientError:
            # A connection kept from before the engine restarted is dead; asking twice changes nothing there.
            return await _post(self._client, path, content)


class EngineDependency(ServiceDependency[Any]):
    """A ``bentoml.depends`` whose service sees an ``Engine`` instead of BentoML's proxy.

    Args:
        on: The engine's service; BentoML starts it beside the dependent one unless there is a ``url``.
        find_url: Called when BentoML starts, not at import: the URL of an engine that runs elsewhere, or ``None``.
        in_process: Makes an ``Engine`` of an instance of the engine's class, where BentoML runs all in one process.
    """

    def __init__(self, on: Any, *, find_url: Callable[[], str | None], in_process: Callable[[Any], Engine]) -> None:
        self._find_url = find_url
        self._in_process = in_process
        super().__init__(on)

    @property
    def url(self) -> str | None:
        """Address of an engine that runs elsewhere; BentoML starts none where there is one."""
        return self._find_url()

    @url.setter
    def url(self, value: str | None) -> None:
        """BentoML sets what it was given, which is nothing."""

    def get(self) -> Engine:
        """The engine, as this process can reach it."""
        url = self.url or self.on.url
        return HttpEngine(url) if url else self._in_process(self.on())


def _client(url: str) -> aiohttp.ClientSession:
    parts = urlsplit(url)
    socket = unquote(parts.path) if parts.scheme == "file" else None
    connector = (
        aiohttp.UnixConnector(socket, limit=CONNECTIONS, keepalive_timeout=KEEP_ALIVE_S)
        if socket
        else aiohttp.TCPConnector(limit=CONNECTIONS, keepalive_timeout=KEEP_ALIVE_S)
    )
    base = "http://engine/" if socket else url.rstrip("/") + "/"
    # aiohttp uses no proxy unless told to: an engine inside the cluster is not reached through one.
    return aiohttp.ClientSession(base, connector=connector, timeout=aiohttp.ClientTimeout(total=None))


async def _post(client: aiohttp.ClientSession, path: str, content: bytes) -> tuple[int, Mapping[str, str], bytes]:
    headers = {"content-type": "application/json"}
    async with client.post(path.lstrip("/"), data=content, headers=headers, allow_redirects=False) as response:
        return response.status, response.headers, await response.read()


def _body(status: int, headers: Mapping[str, str], content: bytes) -> Any:
    try:
        body = json.loads(content)
    except ValueError:
        body = None
    if status == 200 and isinstance(body, dict):
        return body
    error = body.get("error") if isinstance(body, dict) else None
    if not isinstance(error, dict) or "code" not in error:
        raise EngineUnavailableError(f"the explanation engine answered with status {status}", retry_after=5)
    retry_after = headers.get("retry-after", "")
    raise service_error(error, status, int(retry_after) if retry_after.isdigit() else None)
