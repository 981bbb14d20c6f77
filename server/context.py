"""What travels with a request, and what every route shares. Nothing here is module-level state."""

import time
from dataclasses import dataclass, field
from typing import Annotated, cast

from fastapi import Depends, Request
from starlette.types import Scope

from server.auth import Caller
from server.config import ServerConfig
from server.engines.base import Engine
from server.keyring import KeyRing
from server.limits import Limiter, Spend
from server.metrics import Metrics
from server.readiness import Readiness


@dataclass
class RequestContext:
    """One HTTP request as the server sees it; made by the outermost middleware."""

    request_id: str
    route: str
    """The route's template, or "other": never the path the caller typed."""
    started: float = field(default_factory=time.monotonic)
    caller: Caller | None = None
    """None until the key was checked."""
    spend: Spend = lambda amount: None
    """Told how many tokens the request takes of its tenant's minute."""
    error: Exception | None = None
    """What the request was answered with, where that is an error."""
    client_gone: bool = False
    """Set where a stream ended because its reader hung up: its status was already sent as 200."""


@dataclass(frozen=True)
class Services:
    """What `create_app` wires together."""

    engine: Engine
    config: ServerConfig
    readiness: Readiness
    metrics: Metrics
    keys: KeyRing
    limiter: Limiter
    created: int
    """Unix time of the start; `created` of the served model."""


_STATE_KEY = "skillguard"


def attach_context(scope: Scope, context: RequestContext) -> None:
    """Makes the context findable from the scope."""
    scope.setdefault("state", {})[_STATE_KEY] = context


def context_of(scope: Scope) -> RequestContext:
    """The context of this request."""
    return cast(RequestContext, scope["state"][_STATE_KEY])


async def _services(request: Request) -> Services:
    return cast(Services, request.app.state.services)


async def _context(request: Request) -> RequestContext:
    return context_of(request.scope)


async def _caller(request: Request) -> Caller:
    caller = context_of(request.scope).caller
    assert caller is not None, "the key middleware runs before every route"
    return caller


ServicesDep = Annotated[Services, Depends(_services)]
ContextDep = Annotated[RequestContext, Depends(_context)]
CallerDep = Annotated[Caller, Depends(_caller)]
