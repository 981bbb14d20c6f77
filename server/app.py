"""Wires engine, settings and routes into one ASGI application."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware

from server.audit.auditor import Auditor
from server.audit.folder import AuditFolder
from server.audit.log import AuditLog
from server.audit.redaction import Redaction
from server.auth import ANONYMOUS, Role
from server.collectors import StateCollector
from server.config import AuditFailure, ServerConfig
from server.context import Services
from server.edge.connections import Bounds, Connections
from server.encoding import Encoder
from server.engines.base import Engine
from server.hosts import HostMiddleware, names_of
from server.key_changes import KeyChanges
from server.keyring import KeyRing, KeysFile
from server.large_bodies import LargeBodies
from server.limits import Limiter
from server.live import LiveChanges
from server.metrics import Metrics
from server.middleware import (
    AdmissionMiddleware,
    BodyMiddleware,
    KeyMiddleware,
    LimitMiddleware,
    RequestMiddleware,
)
from server.openai.error_responses import install_error_handlers
from server.readiness import Phase, Readiness
from server.recent import RecentAnswers
from server.routes import (
    admin,
    attributions,
    audit,
    checks,
    descriptions,
    generation,
    judging,
    openapi,
    operations,
    page,
    recent,
    tokens,
)
from server.tracing import make_tracer
from server.workers import SharedWorkers


def create_app(engine: Engine, config: ServerConfig) -> FastAPI:
    """The server for one engine. Raises ConfigError for a keys file, an audit folder or tracing that cannot be used.

    The engine starts with the app's lifespan, in the background. `app.state.services.readiness.settled` is set once it
    is ready or has failed.
    """
    keys = KeysFile(config.api_keys_file) if config.api_keys_file else None
    metrics, tracer = Metrics(), make_tracer(guard_events=config.trace_guards)
    auditor = _auditor(engine, config)
    metrics.know_tenants([ANONYMOUS, *(keys.tenants if keys else ())])
    readiness = Readiness(
        engine, config.shadow, keys, auditor, metrics.know, canary_interval_seconds=config.canary_interval_seconds
    )
    connections = Connections(Bounds.of(config))
    metrics.registry.register(StateCollector(engine, readiness, keys, auditor.log, connections))
    services = Services(
        engine=engine,
        config=config,
        encoder=Encoder(engine),
        compilers=SharedWorkers("grammars and tools to be compiled", each_at_a_time=2, each_waiting=64),
        large_bodies=LargeBodies(),
        readiness=readiness,
        metrics=metrics,
        audit=auditor,
        keys=KeyRing(keys, anonymous=Role(config.anonymous_role)),
        limiter=Limiter(),
        recent=RecentAnswers(),
        connections=connections,
        live=LiveChanges(engine, readiness, auditor, metrics, keys, patience_seconds=config.reload_patience_seconds),
        created=int(time.time()),
    )

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        if auditor.log is not None:
            auditor.log.start()
        life = asyncio.create_task(readiness.live())
        try:
            yield
        finally:
            life.cancel()
            await asyncio.gather(life, return_exceptions=True)
            readiness.phase = Phase.STOPPING
            services.encoder.close()
            services.compilers.close()
            await engine.stop()
            await asyncio.to_thread(auditor.stopped)
            await asyncio.to_thread(tracer.shutdown)

    app = FastAPI(
        title="skillguard",
        lifespan=lifespan,
        openapi_url=None,  # FastAPI's own says nothing of errors, and is for everybody
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.services = services
    install_error_handlers(app)
    modules = (
        *(generation, checks, attributions, judging, tokens, descriptions, operations, audit, recent, admin, openapi),
        page,
    )
    routers = [module.router for module in modules]
    for router in routers:
        app.include_router(router)
    routes = [route for router in routers for route in router.routes]
    # The last one added is the outermost.
    app.add_middleware(AdmissionMiddleware, admission=readiness.admission)
    app.add_middleware(BodyMiddleware, max_bytes=config.max_body_bytes)
    app.add_middleware(LimitMiddleware, limiter=services.limiter)
    app.add_middleware(KeyMiddleware, keys=services.keys, changes=KeyChanges(keys, auditor, metrics.know_tenants))
    app.add_middleware(HostMiddleware, names=names_of(config))
    app.add_middleware(RequestMiddleware, routes=routes, metrics=metrics, audit=auditor, tracer=tracer)
    if config.allowed_origins:  # outside all else: a browser asks first, without a key, and reads errors too
        app.add_middleware(
            CORSMiddleware,
            allow_origins=config.allowed_origins,
            allow_methods=("GET", "HEAD", "POST"),
            allow_headers=("*",),
            expose_headers=("retry-after", "x-request-id", "x-should-retry"),
        )
    return app


def _auditor(engine: Engine, config: ServerConfig) -> Auditor:
    if config.audit_dir is None:
        return Auditor()
    folder = AuditFolder(config.audit_dir, config.audit_max_bytes, fsync=config.audit_fsync)
    return Auditor(
        AuditLog(folder, refuse=config.audit_failure is AuditFailure.REFUSE),
        scores=config.audit_scores,
        redaction=Redaction(config.audit_redact) if config.audit_text else None,
        decode=engine.decode,
    )
