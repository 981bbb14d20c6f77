"""uvicorn with the edge's bounds, a stop that ends, and as many descriptors as there may be connections."""

import asyncio
import logging
import math
import os
import resource
import socket
import time
from collections.abc import Callable
from dataclasses import replace

import uvicorn
from fastapi import FastAPI

from server.config import ServerConfig
from server.edge.connections import Connections
from server.edge.protocol import protocol_of
from server.errors import ConfigError

logger = logging.getLogger("skillguard.server")

_OTHER_DESCRIPTORS = 256
"""For whatever is no connection: files, sockets of the engine."""
_BACKLOG = 2048
"""How many the system keeps for us: uvloop accepts one in each round of its loop."""
_LAST_SECONDS = 5
"""How long requests may take to notice that their connections were ended."""
_SAID_EACH_SECONDS = 60.0
_TICKS_A_LOOK = 10
"""uvicorn's ticks, a tenth of a second each."""


class EdgeServer(uvicorn.Server):
    """Ends within its time whoever does not read: connections that are left then are ended."""

    def __init__(self, config: uvicorn.Config, table: Connections, stop_seconds: float, stopping: Callable[[], None]):
        super().__init__(config)
        self._table = table
        self._stop_seconds = stop_seconds
        self._stopping = stopping
        self._descriptors = DescriptorWatch()
        self.listening = asyncio.Event()
        """Set once connections are taken."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn does it. Raises ConfigError where it cannot listen, for which uvicorn ends the process."""
        try:
            await super().startup(sockets)
        except SystemExit as ended:
            if not isinstance(why := ended.__context__, OSError):
                raise
            reason = str(why.strerror).rpartition(": ")[2]  # before it uvloop's says the address once more
            raise ConfigError(
                f"cannot listen on {self.config.host}, port {self.config.port}: {reason}; stop what listens there, or "
                "give another `host` or `port` (0 takes a free one)"
            ) from why
        self.listening.set()

    async def on_tick(self, counter: int) -> bool:
        """As uvicorn does it, with a look whether descriptors are left."""
        if counter % _TICKS_A_LOOK == 0:
            self._descriptors.look()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Running answers end; what has not ended in time is cut."""
        self._stopping()
        cut = asyncio.get_running_loop().call_later(self._stop_seconds, self._table.end_all)
        try:
            await super().shutdown(sockets)
        finally:
            cut.cancel()


def make_server(app: FastAPI, config: ServerConfig, stopping: Callable[[], None] = lambda: None) -> EdgeServer:
    """The server of an app of `create_app`. `stopping` is called once it begins to stop."""
    table: Connections = app.state.services.connections
    settings = uvicorn.Config(
        app,
        host=config.host,
        port=config.port,
        http=protocol_of(table),
        ws="none",
        log_config=None,
        log_level="warning",
        access_log=False,
        backlog=_BACKLOG,
        proxy_headers=False,  # nothing here asks who is behind a proxy, so nobody can lie about it
        timeout_keep_alive=config.keep_alive_timeout_seconds,
        timeout_graceful_shutdown=math.ceil(config.stop_timeout_seconds) + _LAST_SECONDS,
    )
    return EdgeServer(settings, table, config.stop_timeout_seconds, stopping)


def fit_descriptors(table: Connections) -> None:
    """Raises the process's soft limit of open descriptors, and takes fewer connections where that is not enough."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = table.bounds.most + _OTHER_DESCRIPTORS
    may = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < may:
        resource.setrlimit(resource.RLIMIT_NOFILE, (may, hard))
        soft = may
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    fewer = soft - min(_OTHER_DESCRIPTORS, soft // 2)
    logger.warning(
        "the process may have %d descriptors, so there are at most %d connections, not max_connections (%d); raise the "
        "limit (ulimit -n) to %d for that",
        *(soft, fewer, table.bounds.most, wanted),
    )
    table.bounds = replace(table.bounds, most=fewer)


class DescriptorWatch:
    """Says it once a minute where no descriptor is left: uvloop then drops whoever connects and says nothing."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._said_at = -_SAID_EACH_SECONDS

    def look(self) -> None:
        """Takes a descriptor, and gives it back."""
        try:
            os.close(os.open(os.devnull, os.O_RDONLY))
        except OSError as error:
            if self._clock() - self._said_at >= _SAID_EACH_SECONDS:
                self._said_at = self._clock()
                logger.error("connections are dropped: %s; raise the limit of open descriptors (ulimit -n)", error)
