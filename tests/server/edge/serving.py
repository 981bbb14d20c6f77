"""A server behind a real socket, in a thread of its own, with a clock that only tests move."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import uvloop

from server.app import create_app
from server.config import ServerConfig
from server.edge.connections import Bounds, Connections, Ended
from server.edge.serving import EdgeServer, make_server
from server.engines.events import Chunk
from server.engines.scripted.engine import ScriptedEngine
from server.engines.scripted.scripts import Script, answer

T = TypeVar("T")
TIMEOUT_SECONDS = 20.0
"""No test takes a second; what would wait for ever fails instead."""
POST = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
GET = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"


def post(prompt: str, **more: object) -> bytes:
    """A whole request."""
    body = json.dumps({"prompt": prompt, **more}).encode()
    return POST + b"Content-Length: %d\r\n\r\n" % len(body) + body


@dataclass
class Edge:
    """A running server."""

    address: tuple[str, int]
    loop: asyncio.AbstractEventLoop
    server: EdgeServer
    table: Connections
    engine: ScriptedEngine
    usual: Bounds
    now: list[float]
    held: asyncio.Event
    _open: list[socket.socket] = field(default_factory=list)
    _ended_before: Mapping[Ended, int] = field(default_factory=dict)

    def call(self, do: Callable[[], T]) -> T:
        """Does it in the server's loop."""

        async def done() -> T:
            return do()

        return asyncio.run_coroutine_threadsafe(done(), self.loop).result(TIMEOUT_SECONDS)

    def connect(self, source: str = "127.0.0.1", receive_buffer: int = 0) -> socket.socket:
        """A connection that the server has, or has refused."""
        connected = socket.socket()
        if receive_buffer:
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        connected.settimeout(TIMEOUT_SECONDS)
        connected.bind((source, 0))
        connected.connect(self.address)
        self._open.append(connected)
        self.settled()
        return connected

    def settled(self) -> None:
        """Returns once the server has taken in what was sent to it before: its loop has polled twice."""
        for _ in range(3):
            self.call(lambda: None)

    def until(self, holds: Callable[[], object]) -> None:
        """Returns once that holds. A request takes no fixed number of turns of the loop: it is encoded aside."""
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while not self.call(holds):
            assert time.monotonic() < deadline, "it never came to hold"

    def later(self, seconds: float) -> None:
        """So much later the server looks at its connections."""
        self.settled()
        self.now[0] += seconds
        self.call(self.table.sweep)

    def bounded(self, **bounds: Any) -> None:
        """Other bounds, for one test."""
        self.table.bounds = replace(self.usual, **bounds)

    def ended(self, why: Ended) -> int:
        """How many were ended for that in this test."""
        return self.call(lambda: self.table.ended[why]) - self._ended_before.get(why, 0)

    def reset(self) -> None:
        """As new, for the next test: every connection is gone."""
        self.call(self.held.set)
        for connected in self._open:
            connected.close()
        self._open.clear()
        while self.call(lambda: len(self.table)):
            pass
        self.call(self.held.clear)
        self.table.bounds = self.usual
        self.now[0] += 10  # nothing counts that was abandoned
        self._ended_before = self.call(lambda: self.table.ended)
        self.engine.cancelled.clear()
        self.engine.submitted.clear()


def status_of(connected: socket.socket) -> int | None:
    """The status of the next answer, whose head is read to its end; None where the connection was ended instead."""
    head = b""
    try:
        while not head.endswith(b"\r\n\r\n"):
            if not (byte := connected.recv(1)):
                return None
            head += byte
    except ConnectionResetError:
        return None
    return int(head.split()[1])


def rest_of(connected: socket.socket) -> bytes:
    """Whatever still comes until the server ends the connection."""
    parts = []
    try:
        while part := connected.recv(65536):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


@contextmanager
def edge(**settings: Any) -> Iterator[Edge]:
    """A server of a scripted engine. Prompts that hold "held" wait after their first piece for `Edge.held`."""
    now, ready, found = [1000.0], threading.Event(), []

    async def run() -> None:
        held = asyncio.Event()
        scripts = [
            Script((Chunk("Well", tokens=1), held, *answer(", then.")), when=lambda prompt: "held" in prompt),
            Script(answer("x" * 4_000_000), when=lambda prompt: "long" in prompt),
            Script(answer("Hello", " there.")),
        ]
        engine, config = ScriptedEngine(scripts), ServerConfig(**settings)
        app = create_app(engine, config)
        table: Connections = app.state.services.connections
        table.clock = lambda: now[0]
        with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
            server = make_server(app, config)
            running = asyncio.create_task(server.serve(sockets=[listener]))
            await app.state.services.readiness.settled.wait()
            found.append(
                Edge(
                    listener.getsockname(),
                    asyncio.get_running_loop(),
                    server,
                    table,
                    engine,
                    table.bounds,
                    now,
                    held,
                )
            )
            ready.set()
            await running

    thread = threading.Thread(target=lambda: uvloop.run(run()), daemon=True)
    thread.start()
    assert ready.wait(TIMEOUT_SECONDS), "the server did not start"
    (served,) = found
    try:
        yield served
    finally:
        served.reset()
        served.server.should_exit = True
        thread.join(TIMEOUT_SECONDS)
        assert not thread.is_alive(), "the server did not stop"
