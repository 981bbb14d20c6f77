"""Wires engine, settings and routes into one ASGI application."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware

from server.auth import KeyRing, Role, load_keys
from server.collectors import StateCollector
from server.config import ServerConfig
from server.context import Services
from server.engines.base import Engine
from server.metrics import Metrics
from server.middleware import BodyMiddleware, KeyMiddleware, RequestMiddleware
from server.openai.error_responses import install_error_handlers
from server.readiness import Phase, Readiness
from server.routes import checks, descriptions, generation, judging, operations, tokens


def create_app(engine: Engine, config: ServerConfig) -> FastAPI:
    """The server for one engine. Raises ConfigError for a keys file that cannot be used.

    The engine starts with the app's lifespan, in the background. `app.state.services.readiness.settled` is set once it
    is ready or has failed.
    """
    keys = load_keys(config.api_keys_file) if config.api_keys_file else ()
    metrics = Metrics()
    readiness = Readiness(engine, config.shadow, keys, metrics.know)
    metrics.registry.register(StateCollector(engine, readiness))
    services = Services(
        engine=engine,
        config=config,
        readiness=readiness,
        metrics=metrics,
        keys=KeyRing(keys, anonymous=Role.OPERATOR if config.listens_on_loopback else Role.USER),
        created=int(time.time()),
    )

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        bring_up = asyncio.create_task(readiness.bring_up())
        try:
            yield
        finally:
            bring_up.cancel()
            await asyncio.gather(bring_up, return_exceptions=True)
            readiness.phase = Phase.STOPPING
            await engine.stop()

    app = FastAPI(
        title="skillguard",
        lifespan=lifespan,
        # Descriptions of the routes would be the only ones served without a key; docs/ has them.
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.services = services
    install_error_handlers(app)
    routers = [module.router for module in (generation, checks, judging, tokens, descriptions, operations)]
    for router in routers:
        app.include_router(router)
    routes = [route for router in routers for route in router.routes]
    # The last one added is the outermost.
    app.add_middleware(BodyMiddleware, max_bytes=config.max_body_bytes)
    app.add_middleware(KeyMiddleware, keys=services.keys)
    app.add_middleware(RequestMiddleware, routes=routes, metrics=metrics)
    if config.allowed_origins:  # outside all else: a browser asks first, without a key, and reads errors too
        app.add_middleware(
            CORSMiddleware,
            allow_origins=config.allowed_origins,
            allow_methods=("GET", "HEAD", "POST"),
            allow_headers=("*",),
            expose_headers=("retry-after", "x-request-id", "x-should-retry"),
        )
    return app
