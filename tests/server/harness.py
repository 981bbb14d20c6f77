"""Runs an app against a scripted engine, without a network."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI

from server.app import create_app
from server.auth import KeyEntry, Role
from server.config import ServerConfig
from server.edge.serving import make_server
from server.engines.scripted.engine import ScriptedEngine
from server.readiness import Readiness

MODEL = "scripted"
CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
RESPONSES = "/v1/responses"
CHECKS = "/v1/checks"
ATTRIBUTIONS = "/v1/attributions"
MODERATIONS = "/v1/moderations"
GUARDRAIL = "/beta/litellm_basic_guardrail_api"
_TIMEOUT_SECONDS = 30
"""No test takes a second; what would wait for ever fails instead."""


def chat(content: object = "hi", **fields: object) -> dict[str, object]:
    """A chat request with one user message."""
    return {"model": MODEL, "messages": [{"role": "user", "content": content}], **fields}


def completion(prompt: object = "hi", **fields: object) -> dict[str, object]:
    """A completion request."""
    return {"model": MODEL, "prompt": prompt, **fields}


def responses(input: object = "hi", **fields: object) -> dict[str, object]:
    """A request of the Responses API."""
    return {"model": MODEL, "input": input, **fields}


def keys_file(folder: Path, *entries: KeyEntry, tenant: str = "team", **policy: object) -> Path:
    """A keys file of one tenant, and of admins where there are keys of that role."""
    keys = [entry.model_dump(mode="json") for entry in entries if entry.role is not Role.ADMIN]
    admins = [entry.model_dump(mode="json") for entry in entries if entry.role is Role.ADMIN]
    return write_tenants(folder / "keys.json", {tenant: {"keys": keys, **policy}}, admins)


def write_tenants(path: Path, tenants: object, admins: object = ()) -> Path:
    """A keys file, put there in one step as `skillguard key` does."""
    scratch = path.with_suffix(".new")
    scratch.write_text(json.dumps({"tenants": tenants, "admins": admins}))
    return scratch.replace(path)


@dataclass
class Served:
    """A running app and a client to it."""

    app: FastAPI
    client: httpx.AsyncClient
    engine: ScriptedEngine

    @property
    def readiness(self) -> Readiness:
        readiness: Readiness = self.app.state.services.readiness
        return readiness

    async def post(self, path: str, body: object, **headers: str) -> httpx.Response:
        return await self.client.post(path, json=body, headers=headers)

    async def error(self, path: str, body: object) -> dict[str, Any]:
        """The error object of an answer, with its status."""
        response = await self.post(path, body)
        error: dict[str, Any] = response.json()["error"]
        assert error.keys() - {"guard"} == {"message", "type", "param", "code"}
        return {"status": response.status_code, **error}

    async def stream(self, path: str, body: dict[str, object]) -> list[Any]:
        """The data of each server-sent event, parsed; the last is usually the string [DONE]."""
        response = await self.post(path, {**body, "stream": True})
        assert response.status_code == 200, response.text
        return events_of(response.text)

    async def metric(self, line_start: str) -> float:
        """The value of one sample, 0 where it does not exist yet."""
        text = (await self.client.get("/metrics")).text
        values = [line.rpartition(" ")[2] for line in text.splitlines() if line.startswith(line_start)]
        assert len(values) < 2, f"{line_start} is not one sample"
        return float(values[0]) if values else 0.0


def events_of(text: str) -> list[Any]:
    """Server-sent events as their parsed data. Those of the Responses API have a name too, which their data repeat."""
    assert text.endswith("\n\n")
    named = [event.rpartition("data: ")[::2] for event in text[:-2].split("\n\n")]
    datas = [data for _, data in named]
    assert all(not name or name == f"event: {json.loads(data)['type']}\n" for name, data in named)
    return [data if data == "[DONE]" else json.loads(data) for data in datas]


@asynccontextmanager
async def serving(
    engine: ScriptedEngine | None = None, *, settled: bool = True, **settings: Any
) -> AsyncIterator[Served]:
    """An app in its lifespan; once its start is over, unless `settled` is False."""
    engine = engine or ScriptedEngine()
    app = create_app(engine, ServerConfig(**settings))
    transport = httpx.ASGITransport(app=app)
    async with (
        asyncio.timeout(_TIMEOUT_SECONDS),
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://localhost") as client,
    ):
        served = Served(app, client, engine)
        if settled:
            await served.readiness.settled.wait()
        yield served


@asynccontextmanager
async def listening(engine: ScriptedEngine, **settings: Any) -> AsyncIterator[str]:
    """The API's address of an app at a socket of this machine, in this event loop, once its start is over.

    The socket listens before it serves, so that nobody has to wait for it.
    """
    config = ServerConfig(**settings)
    app = create_app(engine, config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = make_server(app, config)
        running = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            await app.state.services.readiness.settled.wait()
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        finally:
            server.should_exit = True
            await running


@dataclass
class Exchange:
    """One request spoken in raw ASGI, where a test must see each part as it is sent, or hang up between them."""

    app: FastAPI
    path: str
    parts: list[bytes]
    """The body's parts that the app has not read yet."""
    complete: bool = True
    """Whether the body ends with its parts, or the app waits for more of it."""
    headers: tuple[tuple[bytes, bytes], ...] = ((b"content-type", b"application/json"),)
    method: str = "POST"
    sent: "asyncio.Queue[Any]" = field(default_factory=asyncio.Queue)
    hang_up: asyncio.Event = field(default_factory=asyncio.Event)
    before_sending: Callable[[], Awaitable[object]] | None = None
    """Awaited before each part of the answer goes out, as by a reader who is slow."""

    @classmethod
    def of(cls, app: FastAPI, path: str, body: object) -> "Exchange":
        return cls(app, path, [json.dumps(body).encode()])

    async def run(self) -> None:
        """Speaks the request until the app is done with it."""
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": self.method,
            "path": self.path,
            "raw_path": self.path.encode(),
            "root_path": "",
            "query_string": b"",
            "scheme": "http",
            "headers": list(self.headers),
            "client": ("127.0.0.1", 1),
            "server": ("test", 80),
        }

        async def receive() -> dict[str, object]:
            if self.parts:
                part = self.parts.pop(0)
                return {"type": "http.request", "body": part, "more_body": bool(self.parts) or not self.complete}
            await self.hang_up.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if self.before_sending is not None:
                await self.before_sending()
            self.sent.put_nowait(message)

        await self.app(scope, receive, send)

    async def next_data(self) -> Any:
        """The next server-sent event's data."""
        message = await self.sent.get()
        if message["type"] == "http.response.start":
            message = await self.sent.get()
        return events_of(message["body"].decode())
