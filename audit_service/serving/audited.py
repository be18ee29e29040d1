"""``@audited`` records every prediction of a method without changing what the method answers.

The prediction's id travels in the response header ``X-Prediction-Id`` (several, with commas, where the method answers
a list), and in the body only where its schema has a field ``prediction_id``. The wrapper is of the method's own kind
(sync, async, generator) with its signature, since BentoML reads both.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import json
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Mapping
from http import HTTPStatus
from typing import Any, TypeVar

from bentoml.exceptions import BentoMLException
from starlette.responses import JSONResponse

from audit_service.errors import body_of, status_of
from audit_service.serving.audited_method import AuditedMethod, Auditing, Pick
from audit_service.serving.error_responses import error_response
from audit_service.serving.request_context import RequestContext, request_to
from audit_service.store.ids import new_id
from audit_service.store.predictions import Reservation
from influence_engine.errors import InfluenceError

Method = TypeVar("Method", bound=Callable[..., Any])

LAST_CHUNKS = 16
"""A stream's label is looked for in this many of its last chunks."""


def audited(
    *,
    label: Pick = "label",
    confidence: Pick = None,
    scores: Pick = None,
    inputs: Mapping[str, str] | None = None,
    config: str | None = None,
) -> Callable[[Method], Method]:
    """Records the predictions of a ``@bentoml.api`` method; goes below ``@bentoml.api``.

    Args:
        label: Where the predicted label is in what the method returns: a field's name, dotted for nested ones, a
            place in a tuple (``"0"``), or a function of the returned value. Where a prediction has several labels, or
            none, this is the list of them, such as ``"entities.label"``, and ``confidence`` that of their
            probabilities: the prediction is counted under each in equal parts. A method that is given lists and
            returns a list has one prediction an item; a list that answers a single example is one prediction, and so is
            anything else: a tuple, a dictionary, a model. A stream has one; its label is in one of its last chunks,
            and a function is given all chunks.
        confidence: The same for the probability of the label, if the method returns it.
        scores: The same for the mapping of every label to its probability, if the method returns it.
        inputs: Where the task's fields are, ``{"text": "request.body"}``, where their names differ from those of the
            arguments and of the arguments' fields.
        config: The config of the model that predicts here, where that is not the service's own: each model of a
            service has one.

    Raises:
        TypeError: at the definition of the service's class, if a name cannot be found, or if what is decorated is no
            plain function.
    """

    def decorate(function: Method) -> Method:
        if not inspect.isfunction(function):
            named = getattr(function, "name", None) or getattr(function, "__name__", type(function).__name__)
            raise TypeError(f"@audited goes below @bentoml.api, directly above `def`; at {named} it is above it")
        outputs = {"label": label, "confidence": confidence, "scores": scores}
        method = AuditedMethod(function, outputs, inputs, config)
        wrapper = _wrap(function, method)
        wrapper.audited_method = method
        wrapper.__signature__ = inspect.signature(function)  # BentoML asks for it with every request
        return wrapper

    return decorate


def _wrap(function: Any, method: AuditedMethod) -> Any:
    if inspect.isasyncgenfunction(function):
        return _wrap_async_stream(function, method)
    if inspect.isgeneratorfunction(function):
        return _wrap_stream(function, method)
    if inspect.iscoroutinefunction(function):
        return _wrap_async(function, method)
    return _wrap_sync(function, method)


def _wrap_async(function: Any, method: AuditedMethod) -> Any:
    @functools.wraps(function)
    async def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        context, audit = request_to(self), method.audit_in(self)
        if context is not None and context.batched:
            return await function(self, *args, **kwargs)
        if audit is None:
            with _carrying_errors():
                return await function(self, *args, **kwargs)
        arguments = {**dict(zip(method.arguments, args, strict=False)), **kwargs}
        reserved = None
        try:
            if context is not None and context.idempotency_key:
                reserved = await asyncio.to_thread(method.reserve, audit, context, arguments)
            result = await function(self, *args, **kwargs)
        except InfluenceError as error:
            return _answer(error, context)
        return method.finish(audit, context, reserved, arguments, result)

    return wrapper


def _wrap_sync(function: Any, method: AuditedMethod) -> Any:
    @functools.wraps(function)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        context, audit = request_to(self), method.audit_in(self)
        if context is not None and context.batched:
            return function(self, *args, **kwargs)
        if audit is None:
            with _carrying_errors():
                return function(self, *args, **kwargs)
        arguments = {**dict(zip(method.arguments, args, strict=False)), **kwargs}
        reserved = None
        try:
            if context is not None and context.idempotency_key:
                reserved = method.reserve(audit, context, arguments)
            result = function(self, *args, **kwargs)
        except InfluenceError as error:
            return _answer(error, context)
        return method.finish(audit, context, reserved, arguments, result)

    return wrapper


def _wrap_async_stream(function: Any, method: AuditedMethod) -> Any:
    @functools.wraps(function)
    async def wrapper(self: Any, *args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
        context, audit = request_to(self), method.audit_in(self)
        if audit is None:
            with _carrying_errors():
                async for chunk in function(self, *args, **kwargs):
                    yield chunk
            return
        arguments = {**dict(zip(method.arguments, args, strict=False)), **kwargs}
        with _carrying_errors():
            reserved = None
            if context is not None and context.idempotency_key:
                reserved = await asyncio.to_thread(method.reserve, audit, context, arguments)
            stream = _Stream(method, audit, context, reserved, arguments)
            with stream:
                async for chunk in function(self, *args, **kwargs):
                    stream.chunks.append(chunk)
                    yield chunk

    return wrapper


def _wrap_stream(function: Any, method: AuditedMethod) -> Any:
    @functools.wraps(function)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Generator[Any, None, None]:
        context, audit = request_to(self), method.audit_in(self)
        if audit is None:
            with _carrying_errors():
                yield from function(self, *args, **kwargs)
            return
        arguments = {**dict(zip(method.arguments, args, strict=False)), **kwargs}
        with _carrying_errors():
            reserved = None
            if context is not None and context.idempotency_key:
                reserved = method.reserve(audit, context, arguments)
            stream = _Stream(method, audit, context, reserved, arguments)
            with stream:
                for chunk in function(self, *args, **kwargs):
                    stream.chunks.append(chunk)
                    yield chunk

    return wrapper


class _Stream:
    """One stream: names its prediction before the first chunk, records it when it ends or breaks."""

    def __init__(
        self,
        method: AuditedMethod,
        audit: Auditing,
        context: RequestContext | None,
        reserved: Reservation | None,
        arguments: Mapping[str, Any],
    ) -> None:
        self.method, self.audit, self.arguments = method, audit, arguments
        self.prediction_id = reserved.prediction_id if reserved else new_id()
        self.repeated = reserved is not None and reserved.repeated
        whole = any(callable(pick) for pick in method.outputs.values())
        self.chunks: deque[Any] = deque(maxlen=None if whole else LAST_CHUNKS)
        if context is not None:
            context.prediction_ids.append(self.prediction_id)

    def __enter__(self) -> None:
        """The header goes out with the first chunk, so the id is known by now."""

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        if self.chunks or kind is None:  # a stream that failed before its first chunk answered nothing
            self.method.record_stream(
                self.audit, self.prediction_id, self.arguments, list(self.chunks), repeated=self.repeated
            )


def _answer(error: InfluenceError, context: RequestContext | None) -> JSONResponse:
    if context is None:
        raise error
    return error_response(error)


@contextlib.contextmanager
def _carrying_errors() -> Iterator[None]:
    """Where no response can be returned, in a stream or without the middleware, an error goes through BentoML; the
    middleware unpacks it.
    """
    try:
        yield
    except InfluenceError as error:
        body = json.dumps(body_of(error))
        raise BentoMLException(body, error_code=HTTPStatus(status_of(error))) from error
