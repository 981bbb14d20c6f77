"""GET /openapi.json: what is served, as an OpenAPI document, for clients' generators and for tools that test servers.

It is made of the routes, the bodies' own models and the table of errors, so that it says nothing by itself. What a
body's fields must have to do with each other is in no schema: a 400 tells of it.
"""

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute

from guards.core.version import version
from server.context import CallerDep, ServicesDep
from server.errors import ERROR_REPLIES, ForbiddenError
from server.keyring import METRICS_PATH, PAGE_PATH, is_admin_path, is_open
from server.openai.common import SamplingBody
from server.routes.reading import reads

router = APIRouter()

_JSON, _EVENTS, _TEXT = "application/json", "text/event-stream", "text/plain"
_ERROR = "Error"
_ERROR_SCHEMA = {
    "type": "object",
    "description": "OpenAI's error object.",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": "string"},
                "guard": {"type": "object"},
            },
        }
    },
}
_NOBODY_READS = 499
_OF_BODIES = frozenset({413, 415})
_KEY = {"bearer": {"type": "http", "scheme": "bearer"}}


@reads(router, "/openapi.json")
async def openapi(request: Request, services: ServicesDep, caller: CallerDep) -> dict[str, Any]:
    """For operators: this document."""
    if not caller.is_operator:
        raise ForbiddenError("The description of the server is for operators; use a key of role operator.")
    app: FastAPI = request.app
    if app.openapi_schema is None:
        app.openapi_schema = _document(app.routes, with_keys=services.keys.file is not None)
    return app.openapi_schema


def _document(routes: Sequence[BaseRoute], *, with_keys: bool) -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # FastAPI names the operations of GET and HEAD alike
        made: dict[str, Any] = get_openapi(title="skillguard", version=version(), routes=routes)
    schemas = made["components"]["schemas"]
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    schemas[_ERROR] = _ERROR_SCHEMA
    streamed = frozenset(_streamed(routes))
    made["paths"] = {path: methods for path, methods in made["paths"].items() if not path.startswith(PAGE_PATH)}
    for path, methods in made["paths"].items():
        methods.pop("head", None)  # goes along with GET
        for method, operation in methods.items():
            operation["operationId"] = f"{method} {path}"
            operation["responses"] = _responses(path, operation, streams=path in streamed)
            if with_keys and not is_open(path):
                operation["security"] = [{name: []} for name in _KEY]
    if with_keys:
        made["components"]["securitySchemes"] = _KEY
    return made


def _streamed(routes: Sequence[BaseRoute]) -> Iterator[str]:
    """The paths whose answers come as events where a request says `stream`."""
    for route in routes:
        body = route.body_field if isinstance(route, APIRoute) else None
        if body is not None and isinstance(kind := body.field_info.annotation, type) and issubclass(kind, SamplingBody):
            yield route.path  # type: ignore[attr-defined]


def _responses(path: str, operation: dict[str, Any], *, streams: bool) -> dict[str, Any]:
    """By status. One status is of several errors, whose codes tell them apart."""
    content: dict[str, Any] = {_TEXT if path == METRICS_PATH else _JSON: {}}
    if streams:
        content[_EVENTS] = {"schema": {"type": "string"}}
    if path == "/ping":
        content = {}
    found = {"200": {"description": "As asked.", **({"content": content} if content else {})}}
    for status, codes in sorted(_codes().items()):
        if status == _NOBODY_READS or (status in _OF_BODIES and "requestBody" not in operation):
            continue
        if status == 409 and not is_admin_path(path):
            continue
        schema: dict[str, Any] = {"schema": {"$ref": f"#/components/schemas/{_ERROR}"}}
        if status == 503 and is_open(path):
            found[str(status)] = {"description": "Not so.", **({"content": {_JSON: {}}} if content else {})}
        else:
            found[str(status)] = {"description": ", ".join(codes), "content": {_JSON: schema}}
    return found


def _codes() -> dict[int, list[str]]:
    """The codes of errors by status, once each."""
    codes: dict[int, list[str]] = {}
    for reply in ERROR_REPLIES.values():
        of = codes.setdefault(reply.status, [])
        if reply.code not in of:
            of.append(reply.code)
    return codes
