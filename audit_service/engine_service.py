"""``InfluenceEngine`` is the service that explains: it holds model and index of every config, once.

It runs in a process of its own that BentoML starts beside the audited services, or in another pod
(``serve.engine_url``). It may serve several services, and several models of each: every request names its config.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import bentoml
from pydantic import ValidationError
from starlette.responses import JSONResponse

from audit_service.config import AuditConfig
from audit_service.config.service_config import ConfigReference, is_switched_off, listed_configs
from audit_service.engine.host import EngineHost
from audit_service.schemas import EngineRequest, EngineThumbnailRequest, SelectionRequest, StatusRequest
from audit_service.serving.error_responses import answering_errors
from audit_service.serving.middleware import MiddlewareMixin
from influence_engine.errors import SettingsError

logger = logging.getLogger(__name__)

_configs: dict[tuple[str, str | None], ConfigReference] = {}


def hold(service: str, references: tuple[ConfigReference, ...]) -> None:
    """Has every engine that this process starts hold the configs of a service class.

    Args:
        service: The class, by its module and name.
        references: Its configs.
    """
    for reference in references:
        _configs[service, reference.name] = reference


async def _explain_directly(engine: InfluenceEngine, body: Any) -> Any:
    try:
        request = EngineRequest.model_validate(body)
    except ValidationError:
        return None  # BentoML finds the same, and shapes the error
    return await _explain(engine, request)


@answering_errors
async def _explain(engine: InfluenceEngine, request: EngineRequest) -> Any:
    items = await engine.host.explain(request.config, request.items, request.deadline_s)
    return JSONResponse({"items": items})  # as it is: it has been validated


@bentoml.service(name="influence_engine", workers=1, traffic={"timeout": 600})
class InfluenceEngine(MiddlewareMixin):
    """Explains predictions. Loads in the background, and never fails to start: it reports what is wrong.

    Alone, it is started by ``BENTO_AUDIT_CONFIG=sentiment bentoml serve audit_service.service:InfluenceEngine``, with
    several configs separated by commas.
    """

    direct: ClassVar = {"/explain": _explain_directly}
    may_be_depended_on: ClassVar = False  # the services beside it ask in JSON, too

    def __init__(self) -> None:
        self.host = EngineHost(wanted_configs())

    @classmethod
    def max_body_bytes(cls, audited: Any = None) -> int:
        """The service that asks has its own limit; a batch holds many inputs."""
        return 64 * 1024 * 1024

    @bentoml.on_shutdown
    def stop(self) -> None:
        """Stops the engine's threads."""
        self.host.close()

    @bentoml.api(route="/explain")
    async def explain(self, request: EngineRequest, /) -> dict[str, Any]:
        """Explains items of one config; each has its answer or its own error."""
        answer: dict[str, Any] = await _explain(self, request)
        return answer

    @bentoml.api(route="/thumbnail")
    @answering_errors
    async def thumbnail(self, request: EngineThumbnailRequest, /) -> dict[str, Any]:
        """The picture of a training example, in base64."""
        found = await asyncio.to_thread(self.host.thumbnail, request.config, request.example_handle)
        return {"content": base64.b64encode(found[0]).decode("ascii"), "media_type": found[1]}

    @bentoml.api(route="/selected")
    @answering_errors
    async def selected(self, request: SelectionRequest, /) -> dict[str, Any]:
        """How many training examples are in a group, or have some handles."""
        return {"examples": await self.host.selected(request.config, request.group, request.examples)}

    @bentoml.api(route="/status")
    @answering_errors
    async def status(self, request: StatusRequest, /) -> dict[str, Any]:
        """What is loaded, of one config or of all."""
        if request.config is not None:
            return self.host.slot(request.config).status()
        return {name: slot.status() for name, slot in self.host.slots.items()}


def wanted_configs() -> dict[str, Callable[[], AuditConfig]]:
    """How to read each config that an engine in this process holds, by name: those of the services beside it, else
    those that ``BENTO_AUDIT_CONFIG`` lists. A class that names none is left out; it cannot be served either. So are
    configs that are switched off.
    """
    if is_switched_off():
        return {}
    wanted = list(_configs.values()) or [ConfigReference(name) for name in listed_configs()]
    found: dict[str, Callable[[], AuditConfig]] = {}
    for reference in wanted:
        try:
            key = reference.key
        except SettingsError as error:
            logger.warning("a service will not be explained: %s", error.message)
            continue
        found[key] = reference.read
        with contextlib.suppress(SettingsError):  # what cannot be read is a state of the engine, which says why
            if not reference.is_enabled():
                del found[key]
    return found


class EngineHere:
    """The engine within this process, where BentoML runs everything in one (``bentoml serve --development``)."""

    def __init__(self, instance: Any) -> None:
        self.host: EngineHost = instance.host

    async def explain(self, config: str, items: Any, deadline_s: float) -> list[dict[str, Any]]:
        """An explanation or an error for each item; raises what ``EngineHost.explain`` raises."""
        return await self.host.explain(config, items, deadline_s)

    async def thumbnail(self, config: str, handle: str) -> tuple[bytes, str]:
        """The picture of a training example; raises what ``EngineHost.thumbnail`` raises."""
        return await asyncio.to_thread(self.host.thumbnail, config, handle)

    async def selected(self, config: str, group: Mapping[str, str] | None, examples: Sequence[str] | None) -> int:
        """As ``EngineHost.selected``."""
        return await self.host.selected(config, group, examples)

    async def status(self, config: str) -> dict[str, Any]:
        """State and identity of what is loaded; ``ServiceError`` (404) for a config that is not held here."""
        return self.host.slot(config).status()

    def another(self) -> EngineHere:
        """Itself: any event loop may wait for its answers."""
        return self

    async def close(self) -> None:
        """Stops its threads."""
        self.host.close()
