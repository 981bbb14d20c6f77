"""What happens around every route: request id, errors, log, metrics; then the key, its limits, the body.

Plain ASGI, since Starlette's `BaseHTTPMiddleware` hides the disconnect of a client from the route behind it.
"""

import logging
import re
import time
from collections.abc import Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.admission import Admission
from server.audit.auditor import Auditor
from server.context import RequestContext, attach_context, context_of
from server.errors import BodyTooLargeError, ClientGoneError, EncodedBodyError, InvalidRequestError, reply_of
from server.key_changes import KeyChanges
from server.keyring import KEY_HEADERS, KeyRing, is_admin_path, is_open
from server.large_bodies import LARGE, Pace
from server.limits import Limiter
from server.metrics import METHODS, Metrics
from server.openai.body import known_path
from server.openai.error_responses import error_response
from server.tracing import Tracer

logger = logging.getLogger("skillguard.server")

_REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_CLIENT_GONE_STATUS = reply_of(ClientGoneError("")).status


def route_path(scope: Scope) -> str:
    """The path as the routes know it: without the prefix of an app that this one is mounted in, of whole segments."""
    path, prefix = str(scope["path"]), str(scope.get("root_path", ""))
    rest = path.removeprefix(prefix)
    return rest if rest == "" or rest.startswith("/") else path


class RequestMiddleware:
    """Outermost: gives the request its id and context, and turns whatever is raised inside into an answer."""

    def __init__(
        self, app: ASGIApp, routes: Sequence[BaseRoute], metrics: Metrics, audit: Auditor, tracer: Tracer
    ) -> None:
        self._app = app
        self._routes = routes
        self._metrics = metrics
        self._audit = audit
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        context = RequestContext(_client_request_id(headers), self._label(scope))
        context.trace = self._tracer.begin(context.own_id, _method(scope["method"]), context.route, headers)
        attach_context(scope, context)
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(raw=message["headers"])["x-request-id"] = context.request_id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception as error:
            if status:
                raise
            if not reply_of(error).tells:
                logger.error("%s failed", context.request_id, exc_info=error)
            await error_response(error, context)(scope, receive, send_with_id)
        finally:
            self._record(context, scope["method"], _CLIENT_GONE_STATUS if context.client_gone else status or 500)
            context.error = None  # its traceback holds this context, and the body: together they would wait for the
            # garbage collector, some hundred megabytes of them where many are refused

    def _record(self, context: RequestContext, method: str, status: int) -> None:
        seconds = time.monotonic() - context.started
        self._metrics.observe_request(context.route, method, status, seconds)
        if context.error is not None and context.caller is not None:
            self._audit.failed(context.asked, context.error)
        error = _error(context)
        context.trace.end(status, None if error is None else reply_of(error).code)
        name = context.caller.name if context.caller else "-"
        why = _why(context)
        logger.info("%s %s %d %.3fs key=%s%s", context.request_id, context.route, status, seconds, name, why)

    def _label(self, scope: Scope) -> str:
        for route in self._routes:
            if route.matches(scope)[0] is not Match.NONE:
                return str(getattr(route, "path", "other"))
        return "other"


class KeyMiddleware:
    """Nobody gets further without a key that is good for the path; then the context knows the caller.

    Nothing that is posted is answered under keys and policies that are not recorded.
    """

    def __init__(self, app: ASGIApp, keys: KeyRing, changes: KeyChanges) -> None:
        self._app = app
        self._keys = keys
        self._changes = changes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            sent = [[value for each, value in scope["headers"] if each == name] for name in KEY_HEADERS]
            try:
                context_of(scope).caller = self._keys.admit(route_path(scope), *sent)
            finally:
                self._changes.begin()
            if _is_asked(scope):
                await self._changes.recorded()
        await self._app(scope, receive, send)


class LimitMiddleware:
    """Keeps a tenant within its limits, before a body is read. What is posted counts; what only tells does not."""

    def __init__(self, app: ASGIApp, limiter: Limiter) -> None:
        self._app = app
        self._limiter = limiter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not _is_asked(scope):
            await self._app(scope, receive, send)
            return
        context = context_of(scope)
        assert context.caller is not None, "the key is checked before"
        with self._limiter.admitted(context.caller) as context.spend:
            await self._app(scope, receive, send)


class BodyMiddleware:
    """Reads the body up to the limit and hands it on whole, so that a larger one never fills the memory.

    Large bodies come in at a pace, since who sends them as fast as a network takes them would have the event loop for
    themselves. It also means that a route sees either the complete body or, through `receive`, the disconnect. A body
    that nobody asks for, such as a probe's, is not read at all: it would be held for whoever has no key.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._pace = Pace()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not _is_asked(scope):
            await self._app(scope, receive, send)
            return
        if Headers(scope=scope).get("content-encoding", "").strip().lower() not in ("", "identity"):
            raise EncodedBodyError("The body is compressed (Content-Encoding); send it as it is.")
        caller = context_of(scope).caller
        assert caller is not None, "the key is checked before"
        body = await self._read(Headers(scope=scope).get("content-length"), receive, caller.tenant)
        handed_on = False

        async def receive_whole() -> Message:
            nonlocal handed_on
            if handed_on:
                return await receive()
            handed_on = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, receive_whole, send)

    async def _read(self, content_length: str | None, receive: Receive, tenant: str) -> bytes:
        if content_length is not None:
            if not content_length.isdecimal():
                raise InvalidRequestError("The header Content-Length is not a number.")
            self._check(int(content_length))
        parts: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGoneError("The client disconnected.")
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            self._check(size)
            if size >= LARGE:
                await self._pace.take(tenant, len(parts[-1]))
            if not message.get("more_body", False):
                return b"".join(parts)

    def _check(self, size: int) -> None:
        if size > self._max_bytes:
            raise BodyTooLargeError(f"The body is larger than {self._max_bytes} bytes; send less.")


class AdmissionMiddleware:
    """Innermost: what may run the model waits at the door while a guard is exchanged, with its whole body read.

    So the policy of a request is that of the guards which judge it.
    """

    def __init__(self, app: ASGIApp, admission: Admission) -> None:
        self._app = app
        self._admission = admission

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not _is_asked(scope) or is_admin_path(route_path(scope)):
            await self._app(scope, receive, send)
            return
        context = context_of(scope)
        context.leave = await self._admission.enter()
        try:
            await self._app(scope, receive, send)
        finally:
            context.leave()


def _is_asked(scope: Scope) -> bool:
    """Whether it is more than a look at what is there."""
    return scope["method"] not in ("GET", "HEAD", "OPTIONS") and not is_open(route_path(scope))


def _error(context: RequestContext) -> Exception | None:
    """What the request ended with, where it was no answer."""
    return ClientGoneError("") if context.client_gone else context.error


def _method(method: str) -> str:
    """One that HTTP defines, or what OpenTelemetry's conventions call any other."""
    return method if method in METHODS else "_OTHER"


def _why(context: RequestContext) -> str:
    """The code and the field of an error, as the caller was told them, but for what the caller wrote."""
    if (error := _error(context)) is None:
        return ""
    shape = reply_of(error)
    param = getattr(error, "param", None) if shape.tells else None
    return f" code={shape.code} param={'-' if param is None else known_path(param)}"


def _client_request_id(headers: Headers) -> str | None:
    """The caller's, where it is fit for a log line."""
    given = headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else None
