"""A service with nothing of the audit but the middleware in front: its audited methods are recorded nowhere."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from http import HTTPStatus

import bentoml
import numpy as np
from bentoml.exceptions import BentoMLException
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from audit_service import audited
from audit_service.serving.middleware import MiddlewareMixin


class Numbers(BaseModel):
    values: list[float]
    factor: int = 1


def teapot(request: object) -> JSONResponse:
    return JSONResponse({"detail": "short and stout"}, status_code=418)


mounted = Starlette(routes=[Route("/teapot", teapot, methods=["POST", "GET"])])


@bentoml.asgi_app(mounted, path="/own")
@bentoml.service(traffic={"timeout": 2, "max_concurrency": 4})
class EdgeApp(MiddlewareMixin):
    @classmethod
    def max_body_bytes(cls, audited: object = None) -> int:
        return 10_000

    def audit_of(self, config: str | None) -> None:
        return None

    @bentoml.api
    @audited()
    def total(self, request: Numbers, /) -> dict[str, float]:
        return {"total": sum(request.values) * request.factor}

    @bentoml.api
    @audited()
    def total_of_list(self, values: list[float], /) -> float:
        return sum(values)

    @bentoml.api
    @audited()
    def shout(self, text: str, /) -> str:
        return text.upper()

    @bentoml.api
    def unaudited(self, text: str) -> int:
        return len(text)

    @bentoml.api
    def fails(self, kind: str) -> str:
        if kind == "refused":
            raise BentoMLException("not like this", error_code=HTTPStatus.CONFLICT)
        if kind == "nested":
            body = {"error": {"code": "inner_code", "message": "inner message"}}
            raise BentoMLException(json.dumps(body), error_code=HTTPStatus.CONFLICT)
        raise RuntimeError("secret detail")

    @bentoml.api
    async def slow(self, seconds: float) -> str:
        import asyncio

        await asyncio.sleep(seconds)
        return "done"

    @bentoml.api
    async def stream(self, count: int) -> AsyncGenerator[str, None]:
        for number in range(count):
            yield f"{number}\n"

    @bentoml.api(batchable=True)
    @audited()
    def double(self, rows: np.ndarray) -> np.ndarray:
        return rows * 2
