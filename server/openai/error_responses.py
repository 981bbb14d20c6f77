"""Error answers, and the handlers that bring FastAPI's own errors into the same shape."""

import json

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from guards.errors import SkillguardError
from server.context import RequestContext, context_of
from server.errors import (
    InvalidRequestError,
    NoSuchRouteError,
    NotJsonError,
    WrongMethodError,
    error_body,
    error_headers,
    reply_of,
)
from server.openai.invalid import invalid_request


def error_response(error: Exception, context: RequestContext) -> Response:
    """Any error as OpenAI's error object. Pure ASCII: a message may quote half a surrogate pair of the caller's."""
    context.error = error
    return Response(
        json.dumps(error_body(error, context.request_id)),
        status_code=reply_of(error).status,
        headers=error_headers(error),
        media_type="application/json",
    )


def install_error_handlers(app: FastAPI) -> None:
    """FastAPI answers these itself, before our middleware could see them."""
    app.add_exception_handler(RequestValidationError, _on_invalid_request)
    app.add_exception_handler(HTTPException, _on_http_exception)


async def _on_invalid_request(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    of_body = any(finding["loc"][0] == "body" for finding in error.errors())
    if of_body and not _is_json(request.headers.get("content-type", "")):
        return _respond(request, NotJsonError("Send the body with the header 'Content-Type: application/json'."))
    return _respond(request, invalid_request(error.errors()))


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    method = request.method if request.method.isalpha() else "?"
    match error.status_code:
        case 404:
            return _respond(request, NoSuchRouteError(f"No such path: {ascii(request.url.path)[:100]}."))
        case 405:
            response = _respond(request, WrongMethodError(f"This path does not take {method}."))
            response.headers.update(error.headers or {})  # Allow
            return response
        case 400:  # FastAPI's for a body that cannot be read other than by JSON's syntax
            ours = error.__cause__ if isinstance(error.__cause__, SkillguardError) else None
            return _respond(request, ours or InvalidRequestError("The body is not valid JSON in UTF-8."))
        case _:
            raise error


def _respond(request: Request, error: Exception) -> Response:
    return error_response(error, context_of(request.scope))


def _is_json(content_type: str) -> bool:
    kind = content_type.partition(";")[0].strip().lower()
    return kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))
