"""What travels with a request, and what every route shares. Nothing here is module-level state."""

import secrets
import time
from dataclasses import dataclass, field
from typing import Annotated, cast

from fastapi import Depends, Request
from starlette.types import Scope

from server.admission import Leave
from server.audit.auditor import Asked, Auditor
from server.auth import Caller
from server.config import ServerConfig
from server.edge.connections import Connections
from server.encoding import Encoder
from server.engines.base import Engine
from server.keyring import KeyRing
from server.large_bodies import LargeBodies
from server.limits import Limiter, Spend
from server.live import LiveChanges
from server.metrics import Metrics
from server.readiness import Readiness
from server.recent import RecentAnswers
from server.tracing import Trace, Untraced
from server.workers import SharedWorkers


@dataclass
class RequestContext:
    """One HTTP request as the server sees it; made by the outermost middleware."""

    client_request_id: str | None
    """The caller's, where it is fit for a log line."""
    route: str
    """The route's template, or "other": never the path the caller typed."""
    started: float = field(default_factory=time.monotonic)
    caller: Caller | None = None
    """None until the key was checked."""
    leave: Leave = lambda: None
    """Said once nothing more will be asked of the engine for this request."""
    spend: Spend = lambda amount: None
    """Told how many tokens the request takes of its tenant's minute."""
    error: Exception | None = None
    """What the request was answered with, where that is an error."""
    client_gone: bool = False
    """Set where a stream ended because its reader hung up: its status was already sent as 200."""
    trace: Trace = field(default_factory=Untraced)
    own_id: str = field(default_factory=lambda: f"req_{secrets.token_hex(16)}")
    """Nobody else has it, whatever id the caller gave."""

    @property
    def request_id(self) -> str:
        """What the answer and the log call it: as the caller does, if the caller calls it anything."""
        return self.client_request_id or self.own_id

    @property
    def asked(self) -> Asked:
        """Who asked for what, for records. Once the key was checked."""
        assert self.caller is not None, "nobody is recorded before the key was checked"
        return Asked(self.own_id, self.client_request_id, self.route, self.caller)


@dataclass(frozen=True)
class Services:
    """What `create_app` wires together."""

    engine: Engine
    config: ServerConfig
    encoder: Encoder
    compilers: SharedWorkers
    """For grammars and tools, which may take long to compile."""
    large_bodies: LargeBodies
    readiness: Readiness
    metrics: Metrics
    audit: Auditor
    keys: KeyRing
    limiter: Limiter
    recent: RecentAnswers
    live: LiveChanges
    connections: Connections
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
