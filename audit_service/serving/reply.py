"""Passes a response on: errors get their shape, and what batchable methods answered goes on record."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from typing import Any

import bentoml

from audit_service.bentoml_internals import pickled, unpickled
from audit_service.serving.asgi import JSON, Message, Send, header, replace_body, say_when_to_come_again
from audit_service.serving.error_responses import uniform_body
from audit_service.serving.request_context import RequestContext
from audit_service.serving.routes import PredictionRecorder, Route


class Reply:
    """The ``send`` of one request.

    Args:
        send: Sends what the service answers.
        send_error: Sends an error that was given its shape here.
        endpoints: Paths that exist, for the message of a 404.
        route: The endpoint, where there is one.
        context: Of a guarded endpoint's request.
        request: What was asked of a batchable method.
        system: It is a path of the server itself, such as ``/livez``, whose errors are plain texts.
    """

    __slots__ = ("chunks", "context", "endpoints", "request", "route", "send", "send_error", "start", "system")

    def __init__(
        self,
        send: Send,
        send_error: Send,
        endpoints: Iterable[str],
        route: Route | None = None,
        context: RequestContext | None = None,
        request: Any = None,
        *,
        system: bool = False,
    ) -> None:
        self.send = send
        self.send_error = send_error
        self.endpoints = endpoints
        self.route = route
        self.context = context
        self.request = request
        self.system = system
        self.start: Message | None = None
        self.chunks: list[bytes] = []

    async def __call__(self, message: Message) -> None:
        """Passes one message on, or keeps it until the whole response is there."""
        if message["type"] == "http.response.start":
            if message["status"] >= 400 or self._recorder() is not None:
                self.start = message
                return
            self._name_predictions(message)
        elif self.start is not None:
            self.chunks.append(bytes(message.get("body", b"")))
            if not message.get("more_body"):
                start, self.start = self.start, None
                await self._whole(start, b"".join(self.chunks))
            return
        await self.send(message)

    async def _whole(self, start: Message, body: bytes) -> None:
        send, content_type = self.send, header(start, b"content-type").decode("latin-1")
        recorder = self._recorder()
        if start["status"] >= 400:
            shape = self.route.shape if self.route is not None else None
            shaped = uniform_body(
                start["status"], content_type, body, endpoints=self.endpoints, shape=shape, system=self.system
            )
            if shaped is not None:
                body, send = json.dumps(shaped).encode(), self.send_error
                replace_body(start, body, JSON)
            say_when_to_come_again(start)
        elif recorder is not None and content_type.startswith("application/json"):
            body = self._record(recorder, start, body)
            self._name_predictions(start)
        await send(start)
        await send({"type": "http.response.body", "body": body})

    def _recorder(self) -> PredictionRecorder | None:
        """What records a whole answer here: of a batchable method, which sees a list merged from several requests."""
        batched = self.context is not None and self.context.batched
        return self.route.recorder if batched and self.route is not None else None

    def _record(self, recorder: PredictionRecorder, start: Message, body: bytes) -> bytes:
        context = self.context
        assert context is not None
        try:
            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in start.get("headers", ())}
            response = unpickled(body, headers) if context.pickled else json.loads(body)
            if recorder.record_response(bentoml.get_current_service(), context, self.request, rows(response)):
                body, more = pickled(response) if context.pickled else (json.dumps(response).encode(), {})
                replace_body(start, body, JSON, more)
        except Exception:  # whatever goes wrong with the record, the prediction goes out
            logging.getLogger(__name__).exception("predictions of a batchable method were not recorded")
        return body

    def _name_predictions(self, start: Message) -> None:
        if self.context is not None and self.context.prediction_ids:
            ids = ",".join(self.context.prediction_ids).encode("latin-1")
            start["headers"] = [*start.get("headers", ()), (b"x-prediction-id", ids)]


def rows(value: Any) -> Any:
    """An array as JSON would have it, a list of its rows; anything else as it is."""
    return value.tolist() if hasattr(value, "tolist") and hasattr(value, "shape") else value
