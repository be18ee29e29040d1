"""Errors of the service: each has an HTTP status, a stable code, and a message that says what would be right."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from audit_service.outside import MOST_NAMED, said, without_folders
from influence_engine.errors import InfluenceError


class ServiceError(InfluenceError):
    """Base of what the service answers with an error body on purpose.

    Attributes:
        status: The HTTP status.
        retry_after: Seconds after which the same request may succeed, where waiting helps.
    """

    code = "internal_error"
    status = 500

    def __init__(self, message: str, *, field: str | None = None, retry_after: int | None = None) -> None:
        super().__init__(message, field=field)
        self.retry_after = retry_after


class BadRequestError(ServiceError):
    """The request does not have the shape of its endpoint."""

    code = "invalid_request"
    status = 400


class BrokenJsonError(BadRequestError):
    """The body is not JSON (``NaN`` and ``Infinity`` are not JSON either)."""

    code = "bad_json"


class PredictionNotFoundError(ServiceError):
    """No prediction has this id."""

    code = "prediction_not_found"
    status = 404


class ExampleNotFoundError(ServiceError):
    """No training example has this handle."""

    code = "example_not_found"
    status = 404


class NothingToShowError(ServiceError):
    """The example is known and there is no picture of it here: its task has none, or the index keeps no examples."""

    code = "nothing_to_show"
    status = 404


class InputNotKeptError(ServiceError):
    """The prediction is known, its input was never kept (``keep_inputs: none``)."""

    code = "input_not_kept"
    status = 409


class IdempotencyConflictError(ServiceError):
    """The same ``Idempotency-Key`` came with another input."""

    code = "idempotency_conflict"
    status = 409


class InputErasedError(ServiceError):
    """The prediction is known, its input has been erased or its retention time is over."""

    code = "input_erased"
    status = 410


class ModelChangedError(ServiceError):
    """The prediction on record was made by another model than the one that is served now."""

    code = "model_changed"
    status = 409


class BodyTooLargeError(ServiceError):
    """The body is longer than ``serve.max_body_bytes``."""

    code = "body_too_large"
    status = 413


class ForeignSiteError(ServiceError):
    """A browser asks for a page that may not ask here."""

    code = "forbidden"
    status = 403


class MediaTypeError(ServiceError):
    """The body's content type is not one that this endpoint reads."""

    code = "unsupported_media_type"
    status = 415


class NoSuchEndpointError(ServiceError):
    """No endpoint has this address."""

    code = "not_found"
    status = 404


class JobNotFoundError(ServiceError):
    """No job has this id."""

    code = "job_not_found"
    status = 404


class JobNotDoneError(ServiceError):
    """The job has no result: it waits, runs, was cancelled or failed."""

    code = "job_not_done"
    status = 409


class QueueFullError(ServiceError):
    """As many jobs wait as may."""

    code = "queue_full"
    status = 429


class StoreUnavailableError(ServiceError):
    """The database with predictions or jobs cannot be read or written just now."""

    code = "store_unavailable"
    status = 503


class StateSchemaError(ServiceError):
    """What is kept has a shape that this version of the program does not know; nothing of it is read."""

    code = "state_schema"


class ModelUnavailableError(ServiceError):
    """The model that is to predict cannot be opened; the message says why."""

    code = "model_unavailable"
    status = 503


class EngineUnavailableError(ServiceError):
    """The explanation engine is down, loading, or did not answer in time. Predictions are not affected."""

    code = "engine_unavailable"
    status = 503


class EngineLoadingError(EngineUnavailableError):
    """The explanation engine is still loading its model and index."""

    code = "engine_loading"


class EngineBusyError(EngineUnavailableError):
    """More explanations are asked for than can be answered in time."""

    code = "engine_busy"
    status = 429


class EngineTimeoutError(EngineUnavailableError):
    """The explanation engine did not answer before the deadline."""

    code = "engine_timeout"


class Kind(NamedTuple):
    """What a code says over the wire.

    Attributes:
        status: The HTTP status that it comes with.
        meaning: One sentence.
    """

    status: int
    meaning: str


ANSWERED_AS = {
    "bad_input": BadRequestError.code,
    "bad_data": BadRequestError.code,
    "bad_settings": BadRequestError.code,
    "tier_unavailable": "tier_unavailable",
}
"""What errors of ``influence_engine`` that a request can cause are called over the wire, where one mistake has one code
whoever finds it; the others are the service's own trouble, and keep their names."""

UNSPECIFIC = {
    "unauthorized": Kind(401, "The service's own code asks for credentials."),
    "method_not_allowed": Kind(405, "The endpoint is asked by another method, which the header Allow names."),
    "tier_unavailable": Kind(422, "This model and index cannot give influences of this tier."),
    "too_many_requests": Kind(
        429, "More requests are being answered than traffic.max_concurrency of the service lets."
    ),
    "service_unavailable": Kind(503, "The service does not answer just now."),
    "timeout": Kind(504, "The method took longer than traffic.timeout of the service lets."),
}
"""Codes that no class of this module has: of BentoML's and Starlette's own answers, and of ``influence_engine``."""

RETRY_AFTER_S = {429: 1, 503: 5}
"""When to come again, in seconds, where what answers such a status does not know."""


def kinds() -> dict[str, Kind]:
    """Every code that an answer of the plugin's endpoints can have, with its status and meaning."""
    own = {one.code: Kind(one.status, (one.__doc__ or "").splitlines()[0]) for one in _families(ServiceError)}
    return {**own, ServiceError.code: Kind(500, "A defect of the service; its log says more."), **UNSPECIFIC}


def _families(base: type[ServiceError]) -> Iterator[type[ServiceError]]:
    yield base
    for one in base.__subclasses__():
        if one.__module__ == __name__:
            yield from _families(one)


def code_of(error: InfluenceError) -> str:
    """What an error raised on purpose is called over the wire."""
    return ANSWERED_AS.get(error.code, error.code)


def status_of(error: InfluenceError) -> int:
    """The HTTP status of an error raised on purpose: its own, else that of its code, else 500."""
    if isinstance(error, ServiceError):
        return error.status
    called = ANSWERED_AS.get(error.code, "")
    return BadRequestError.status if called == BadRequestError.code else UNSPECIFIC.get(called, Kind(500, "")).status


def body_of(error: InfluenceError) -> dict[str, Any]:
    """The error body of an error that was raised on purpose."""
    return error_body(code_of(error), error.message, error.field)


def error_body(code: str, message: str, field: str | None = None) -> dict[str, Any]:
    """The one shape of every error body: ``{"error": {"code", "message", "field"?}}``.

    Message and field may quote what was sent or name a file: they are cut, and folders of this machine are left out.
    """
    error = {"code": code, "message": said(without_folders(message))}
    if field is not None:
        error["field"] = said(without_folders(field), MOST_NAMED)
    return {"error": error}


def service_error(error: Mapping[str, Any], status: int, retry_after: int | None = None) -> ServiceError:
    """The error that an error body tells of: what ``error_body`` put in, and the status it came with."""
    failure = ServiceError(error["message"], field=error.get("field"), retry_after=retry_after)
    failure.code, failure.status = error["code"], status
    return failure
