"""Those that look at paths see the route; the application sees what was asked for."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route
from starlette.testclient import TestClient

from audit_service.serving.path_labels import PathLabels, restore_path


async def tell(request: Request) -> PlainTextResponse:
    return PlainTextResponse(f"{request.url.path} {request.scope['raw_path'].decode()}")


APP = Starlette(
    routes=[
        Route("/judge", tell),
        Route("/film/{number}", tell),
        Mount("/own", routes=[Route("/{rest:path}", tell)]),
    ]
)


@pytest.mark.parametrize(
    ("path", "label", "answer"),
    [
        ("/judge", "/judge", "/judge /judge"),
        ("/film/7", "/film/{number}", "/film/7 /film/7"),
        ("/own/a%20b", "/own/{path}", "/own/a b /own/a%20b"),
        ("/nowhere", "/{unknown}", "Not Found"),
    ],
)
def test_a_path_is_labelled_outside_and_itself_inside(path: str, label: str, answer: str) -> None:
    seen: list[str] = []

    async def looking(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            seen.extend([scope["path"], scope["raw_path"].decode()])
        restore_path(scope)
        await APP(scope, receive, send)

    with TestClient(PathLabels(looking, routes=APP.routes)) as client:
        assert client.get(path).text == answer
    assert seen == [label, label]
