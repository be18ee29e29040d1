"""``/docs.json``: describes an audited service in OpenAPI 3.1.

What ``/audit/...`` reads and answers comes from the pydantic models that read and answer it
(``described_endpoints.ENDPOINTS``). Of a service's own methods the schemas are those that BentoML made of their
signatures, in the words of JSON Schema 2020-12, which OpenAPI 3.1 takes over. Errors have one shape everywhere.
"""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any

from pydantic import TypeAdapter
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from audit_service.errors import Kind, kinds
from audit_service.schemas import ErrorBody
from audit_service.serving.described_endpoints import ANYWHERE, AUDITED, ENDPOINTS, NEXT_OF_A_JOB
from audit_service.serving.routes import is_ours

REFERENCE = "#/components/schemas/{model}"
ERROR = {"$ref": REFERENCE.format(model=ErrorBody.__name__)}
JSON_TYPES = frozenset({"null", "boolean", "object", "array", "number", "string", "integer"})
PREDICTION_ID = {
    "description": "The prediction's id on record; of several, all in their order with commas between.",
    "schema": {"type": "string"},
}
IDEMPOTENCY_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "Names this request: sent again with the same key, it is the same prediction on record.",
    "schema": {"type": "string"},
}
PREDICTED = {"prediction_id": "$response.header.X-Prediction-Id"}
"""What the next question says of a prediction that has just been answered."""

RETRY_AFTER = {"description": "When to come again, in seconds.", "schema": {"type": "integer", "minimum": 0}}
SYSTEM = {
    "/livez": ("Whether the server is alive.", "text/plain"),
    "/healthz": ("The same as /livez.", "text/plain"),
    "/readyz": ("Whether the service can predict.", "text/plain"),
    "/metrics": ("What Prometheus reads.", "text/plain"),
    "/schema.json": ("BentoML's own description, which its clients read.", "application/json"),
    "/docs.json": ("This description.", "application/json"),
}
ABOUT = """Audited by bento-audit: every prediction is put on record, and `/audit/...` says which training examples made
it. `/audit/...` reads JSON only, under the names and from the pages that `serve.hosts` and `serve.origins` of the
config let in."""


def description_route(service: Any) -> Route:
    """The route of ``/docs.json``; the description is made when it is first asked for.

    Args:
        service: A BentoML service with the middleware.
    """
    described = functools.cache(lambda: json.dumps(describe(service)).encode())

    async def answer(request: Request) -> Response:
        return Response(described(), media_type="application/json")

    prefix = (service.path_prefix or "").strip("/")
    return Route(f"/{prefix}/docs.json" if prefix else "/docs.json", answer, name="docs")


def describe(service: Any) -> dict[str, Any]:
    """The description of a service.

    Returns:
        A JSON value, valid in OpenAPI 3.1.
    """
    version = service.bento.tag.version if service.bento is not None else None
    adapters: list[Any] = [("error", "validation", TypeAdapter(ErrorBody))]
    ours = {one.route: one for one in service.apis.values() if is_ours(one)}
    for route, endpoint in ENDPOINTS.items():
        if route not in ours:
            continue
        adapters.append(((route, "request"), "validation", TypeAdapter(endpoint.reads)))
        adapters += [((route, status), "validation", TypeAdapter(one)) for status, one in endpoint.answers.items()]
    own, shared = TypeAdapter.json_schemas(adapters, ref_template=REFERENCE)
    components: dict[str, Any] = dict(shared.get("$defs", {}))
    paths: dict[str, Any] = {}
    for method in service.apis.values():
        if method.route in ENDPOINTS and method.route in ours:
            schemas = {key[1]: schema for (key, _), schema in own.items() if key[0] == method.route}
            paths[method.route] = {"post": _audit_operation(service, method, schemas)}
        else:
            paths[method.route] = {"post": _operation(service, method, components)}
    for path, (says, media_type) in SYSTEM.items():
        paths[path] = {"get": _system_operation(path, says, media_type)}
    if service.mount_apps or any(method.is_task for method in service.apis.values()):
        _add_the_rest(service, paths, components)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": service.name,
            "version": version or "unversioned",
            "description": "\n\n".join(filter(None, [inspect.cleandoc(service.inner.__doc__ or ""), ABOUT])),
        },
        "servers": [{"url": "."}],
        "tags": [{"name": name} for name in ("predictions", "audit", "server")],
        "paths": paths,
        "components": {"schemas": components},
    }


def _audit_operation(service: Any, method: Any, schemas: Mapping[Any, Any]) -> dict[str, Any]:
    endpoint = ENDPOINTS[method.route]
    answers = {}
    for status in endpoint.answers:
        content = {"schema": schemas[status]}
        if status in endpoint.answered:
            content["example"] = endpoint.answered[status]
        answers[str(status)] = {
            "description": HTTPStatus(status).phrase,
            "content": {"application/json": content},
            **_links(service, endpoint.next_after(status), NEXT_OF_A_JOB),
        }
    return {
        **_head(service, method, "audit"),
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": schemas["request"], "example": endpoint.asked}},
        },
        "responses": {**answers, **_errors((*ANYWHERE, *endpoint.codes))},
    }


def _operation(service: Any, method: Any, components: dict[str, Any]) -> dict[str, Any]:
    """A method of the service's own."""
    audited = hasattr(method.func, "audited_method")
    request = _schema(method, method.input_spec, "validation", components)
    answer: dict[str, Any] = {
        "description": HTTPStatus.OK.phrase,
        "content": {
            method.output_spec.mime_type(): {"schema": _schema(method, method.output_spec, "serialization", components)}
        },
    }
    if audited:
        answer["headers"] = {"X-Prediction-Id": PREDICTION_ID}
        answer |= _links(service, ["/audit/explain"], PREDICTED)
    return {
        **_head(service, method, "predictions"),
        **({"parameters": [IDEMPOTENCY_KEY]} if audited else {}),
        "requestBody": {
            "required": bool(request.get("required")) or request.get("type") != "object",
            "content": {method.input_spec.mime_type(): {"schema": request}},
        },
        "responses": {
            "200": answer,
            **_errors(AUDITED if audited else ("invalid_request", "too_many_requests", "internal_error", "timeout")),
            "default": {"description": "What the method answers itself.", "content": _error_content()},
        },
    }


def _system_operation(path: str, says: str, media_type: str) -> dict[str, Any]:
    schema = {"type": "string"} if media_type == "text/plain" else {"type": "object"}
    return {
        "summary": says,
        "operationId": f"server_{path.strip('/').partition('.')[0]}",
        "tags": ["server"],
        "responses": {
            "200": {"description": HTTPStatus.OK.phrase, "content": {media_type: {"schema": schema}}},
            **_errors(("internal_error", "service_unavailable")),
        },
    }


def _links(service: Any, routes: Iterable[str], body: Mapping[str, str]) -> dict[str, Any]:
    """Where an answer leads: the endpoints, and what of the answer their requests hold."""
    known = {method.route: method for method in service.apis.values()}
    there = [known[route] for route in routes if route in known]
    links = {one.name: {"operationId": _operation_id(service, one), "requestBody": dict(body)} for one in there}
    return {"links": links} if links else {}


def _operation_id(service: Any, method: Any) -> str:
    return f"{service.name}__{method.name}"


def _add_the_rest(service: Any, paths: dict[str, Any], components: dict[str, Any]) -> None:
    """What only BentoML knows of: where tasks are asked for, and mounted applications that describe themselves."""
    theirs = in_json_schema(json.loads(json.dumps(service.openapi_spec.asdict(), default=str)))
    for path, item in theirs["paths"].items():
        for operation in item.values():  # those of a task have names that are not unique
            if isinstance(operation, dict) and "operationId" in operation:
                operation["operationId"] = service.name + path.replace("/", "__")
        paths.setdefault(path, item)
    for name, one in theirs["components"]["schemas"].items():
        components.setdefault(name, one)


def _head(service: Any, method: Any, tag: str) -> dict[str, Any]:
    text = _markdown(inspect.cleandoc(method.doc or ""))
    return {
        "summary": text.splitlines()[0] if text else method.name,
        **({"description": text} if text else {}),
        "operationId": _operation_id(service, method),
        "x-bentoml-name": method.name,
        "tags": [tag],
    }


def _errors(codes: Iterable[str]) -> dict[str, Any]:
    """The responses for some codes, by their statuses."""
    known = kinds()
    by_status: dict[int, dict[str, Kind]] = {}
    for code in dict.fromkeys(codes):
        by_status.setdefault(known[code].status, {})[code] = known[code]
    found: dict[str, Any] = {}
    for status, some in sorted(by_status.items()):
        code, kind = next(iter(some.items()))
        found[str(status)] = {
            "description": "\n".join(f"- `{code}`: {_markdown(kind.meaning)}" for code, kind in some.items()),
            "content": _error_content({"error": {"code": code, "message": _markdown(kind.meaning)}}),
        }
        if status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE):
            found[str(status)]["headers"] = {"Retry-After": RETRY_AFTER}
    return found


def _markdown(docstring: str) -> str:
    return docstring.replace("``", "`")


def _error_content(example: Any = None) -> dict[str, Any]:
    return {"application/json": {"schema": ERROR, **({} if example is None else {"example": example})}}


def _schema(method: Any, spec: Any, mode: Any, components: dict[str, Any]) -> dict[str, Any]:
    """The schema that BentoML made of a signature; models within it become components.

    Args:
        method: The method.
        spec: Its input or output.
        mode: As pydantic calls what is read, and what is written.
        components: Takes the models.
    """
    prefix = f"{method.name}.{'request' if mode == 'validation' else 'answer'}."
    template = REFERENCE.format(model=prefix + "{model}")
    schema = in_json_schema(spec.model_json_schema(ref_template=template, mode=mode))
    for name, one in schema.pop("$defs", {}).items():
        components[prefix + name] = one
    if "title" in schema:
        schema["title"] = schema["title"].removesuffix("IODescriptor")
    return schema


def in_json_schema(schema: Any) -> Any:
    """A schema of BentoML's in the words of JSON Schema: it has types of its own for arrays, files and tables."""
    if isinstance(schema, list):
        return [in_json_schema(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: in_json_schema(value) for key, value in schema.items() if key not in ("root_input", "pil")}
    kind = found.get("type")
    if not isinstance(kind, str) or kind in JSON_TYPES:
        return found
    del found["type"]
    found.pop("format", None)
    if kind == "file":
        return {**found, "type": "string", "contentMediaType": found.get("content_type", "application/octet-stream")}
    if kind == "tensor":
        return {**found, "type": "array", "description": "An array, as lists within lists."}
    return found
