"""What ``@audited`` knows of a method, and how what it answers becomes predictions on record."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol

from pydantic import BaseModel
from starlette.responses import JSONResponse

from audit_service.serving.method_fields import (
    Path,
    argument_names,
    asks_for_several,
    check_output,
    dig,
    example_of,
    fields_of,
    find_inputs,
    type_hints,
)
from audit_service.serving.request_context import RequestContext
from audit_service.store.ids import derived_id, new_id
from audit_service.store.predictions import Reservation

Pick = str | Callable[[Any], Any] | None
"""Where an output is: a dotted name in what the method returns, or a function of it."""

logger = logging.getLogger(__name__)


class Auditing(Protocol):
    """What a service offers as ``self.audit``; see ``serving.audit.Audit``."""

    input_fields: Sequence[str] | None
    listed_fields: Collection[str]

    def record(
        self, prediction_id: str, example: Mapping[str, Any], outputs: Mapping[str, Any], *, repeated: bool = False
    ) -> None:
        """Puts one prediction on record, where it is already if it is ``repeated``."""

    def reserve(self, idempotency_key: str, method: str, example: Mapping[str, Any]) -> Reservation:
        """What an ``Idempotency-Key`` stands for."""

    def dropped(self, reason: str, count: int = 1) -> None:
        """Counts predictions that are missing from the record."""


class AuditedService(Protocol):
    """A service with audited methods; see ``service.AuditMixin``."""

    def audit_of(self, config: str | None) -> Auditing | None:
        """The audit by a config, or by the service's own; ``None`` where that is switched off."""


class AuditedMethod:
    """What ``@audited`` knows about one method.

    Args:
        function: The method.
        outputs: Where ``label``, ``confidence`` and ``scores`` are in what it returns.
        inputs: Where the task's fields are, as far as that is said by hand.
        config: The config that it is audited by; ``None`` for the service's own.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        outputs: Mapping[str, Pick],
        inputs: Mapping[str, str] | None = None,
        config: str | None = None,
    ) -> None:
        self.function = function
        self.outputs = outputs
        self.inputs = inputs or {}
        self.config = config
        self.arguments = argument_names(function)
        self._paths: dict[tuple[str, ...] | None, dict[str, Path]] = {}
        # Where the annotation does not say, an answer that already holds the key shows that the schema has it.
        self._names_id = "prediction_id" in (fields_of(type_hints(function).get("return", Any)) or ())

    def check(self) -> None:
        """Refuses names that the method's signature rules out; raises ``TypeError``."""
        find_inputs(self.function, (), self.inputs)
        for part, pick in self.outputs.items():
            if isinstance(pick, str):
                check_output(self.function, part, pick)

    def paths(self, fields: Sequence[str] | None) -> dict[str, Path]:
        """Where the task's ``fields`` are; raises ``TypeError`` where they cannot be found."""
        key = None if fields is None else tuple(fields)
        if key not in self._paths:
            self._paths[key] = find_inputs(self.function, fields, self.inputs)
        return self._paths[key]

    def audit_in(self, service: AuditedService) -> Auditing | None:
        """The audit that records this method of ``service``; ``None`` where it is switched off, or cannot be had."""
        try:
            return service.audit_of(self.config)
        except Exception:  # the prediction goes out whatever becomes of its record
            logger.exception("predictions of %s are not recorded", self.function.__qualname__)
            return None

    def reserve(self, audit: Auditing, context: RequestContext, arguments: Mapping[str, Any]) -> Reservation:
        """Reserves the id of a request that has an ``Idempotency-Key``."""
        example = example_of(self.paths(audit.input_fields), arguments)
        return audit.reserve(context.idempotency_key or "", self.function.__name__, example)

    def reserve_request(self, service: AuditedService, context: RequestContext, request: Any) -> None:
        """The same for a batchable method, from the request's JSON."""
        audit = self.audit_in(service)
        if audit is not None:
            context.reserved = self.reserve(audit, context, self._arguments_of_json(request))

    def finish(
        self,
        audit: Auditing,
        context: RequestContext | None,
        reserved: Reservation | None,
        arguments: Mapping[str, Any],
        result: Any,
    ) -> Any:
        """Records what the method returned; returns it, with its id where the schema has the field."""
        try:
            shown = _json_of(result) if isinstance(result, JSONResponse) else result
            if shown is None:
                return result  # an error that the method answered itself is no prediction
            # A tuple is one prediction: label and confidence, say.
            many = isinstance(shown, list) and self._asked_for_several(audit, arguments)
            ids = self._record(audit, reserved, arguments, shown if many else [shown], many)
            if context is not None:
                context.prediction_ids.extend(ids)
            if many and isinstance(result, list):
                return [*map(self._named, result, ids)]
            return self._named(result, ids[0]) if ids and not many else result
        except Exception:  # the prediction goes out whatever becomes of its record
            logger.exception("a prediction of %s was not recorded", self.function.__qualname__)
            _count_dropped(audit)
            return result

    def record_response(self, service: AuditedService, context: RequestContext, request: Any, response: Any) -> bool:
        """Records one request's answer of a batchable method, from the JSON of both.

        Returns:
            Whether ids were written into ``response``.
        """
        audit = self.audit_in(service)
        if audit is None:
            return False
        many = isinstance(response, list)
        items = response if many else [response]
        arguments = self._arguments_of_json(request)
        context.prediction_ids.extend(self._record(audit, context.reserved, arguments, items, many))
        named = False
        for item, prediction_id in zip(items, context.prediction_ids, strict=True):
            if isinstance(item, dict) and (self._names_id or "prediction_id" in item):
                item["prediction_id"] = prediction_id
                named = True
        return named

    def record_stream(
        self,
        audit: Auditing,
        prediction_id: str,
        arguments: Mapping[str, Any],
        chunks: Sequence[Any],
        *,
        repeated: bool = False,
    ) -> None:
        """Records a stream that has ended, or broken."""
        try:
            outputs = self._stream_outputs(chunks)
            example = example_of(self.paths(audit.input_fields), arguments)
            audit.record(prediction_id, example, outputs, repeated=repeated)
        except Exception:  # the stream has gone out whatever becomes of its record
            logger.exception("a prediction of %s was not recorded", self.function.__qualname__)
            _count_dropped(audit)

    def _record(
        self, audit: Auditing, reserved: Reservation | None, arguments: Mapping[str, Any], items: list[Any], many: bool
    ) -> list[str]:
        paths = self.paths(audit.input_fields)
        ids = []
        for number, item in enumerate(items):
            prediction_id = new_id() if reserved is None else _numbered(reserved.prediction_id, number)
            example = example_of(paths, arguments, number if many else None)
            outputs = {part: _pick(item, pick) for part, pick in self.outputs.items() if pick is not None}
            audit.record(prediction_id, example, outputs, repeated=reserved is not None and reserved.repeated)
            ids.append(prediction_id)
        return ids

    def _stream_outputs(self, chunks: Sequence[Any]) -> dict[str, Any]:
        outputs: dict[str, Any] = {}
        for part, pick in self.outputs.items():
            if callable(pick):
                outputs[part] = pick(list(chunks))
            elif pick is not None:
                for chunk in reversed(chunks):
                    try:
                        outputs[part] = dig(_chunk_value(chunk), pick.split("."))
                    except (KeyError, ValueError):
                        continue
                    break
        return outputs

    def _asked_for_several(self, audit: Auditing, arguments: Mapping[str, Any]) -> bool:
        # A list may be the one answer to one question, such as the entities of a text.
        return asks_for_several(self.paths(audit.input_fields), arguments, audit.listed_fields)

    def _arguments_of_json(self, request: Any) -> Mapping[str, Any]:
        if isinstance(request, dict) and not (len(self.arguments) == 1 and self.arguments[0] not in request):
            return request
        return {self.arguments[0]: request}

    def _named(self, result: Any, prediction_id: str) -> Any:
        if isinstance(result, BaseModel):
            if "prediction_id" in type(result).model_fields:
                return result.model_copy(update={"prediction_id": prediction_id})
        elif isinstance(result, dict):
            if self._names_id or "prediction_id" in result:
                return {**result, "prediction_id": prediction_id}
        elif self._names_id and hasattr(result, "prediction_id"):
            result.prediction_id = prediction_id
        return result


def _count_dropped(audit: Auditing) -> None:
    with contextlib.suppress(Exception):  # what kept the prediction from the record may keep this from it, too
        audit.dropped("not_recordable")


def _pick(result: Any, pick: Pick) -> Any:
    return pick(result) if callable(pick) else dig(result, (pick or "").split("."))


def _numbered(first: str, number: int) -> str:
    return first if number == 0 else derived_id(hashlib.sha256(f"{first}/{number}".encode()).digest())


def _chunk_value(chunk: Any) -> Any:
    if isinstance(chunk, (str, bytes)):
        text = chunk if isinstance(chunk, str) else chunk.decode("utf-8", "replace")
        return json.loads(text.strip().removeprefix("data:"))
    return chunk


def _json_of(response: JSONResponse) -> Any:
    return json.loads(bytes(response.body)) if response.status_code < 400 else None
