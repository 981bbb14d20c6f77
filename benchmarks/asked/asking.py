"""Asks a server, and keeps every answer, so that a stopped run goes on where it was."""

import asyncio
import json
from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

from benchmarks.asked.requests import CHAT, Request

TOO_LONG = "too_long"
"""What stands for a finish reason where the prompt does not fit into the model's context."""


class AskingError(RuntimeError):
    """The server answered neither with an answer nor that the prompt is too long."""


@dataclass(frozen=True)
class Reply:
    """One answer as the API gave it. `stage`: where in the request a guard fired, None where none did.

    `tokens`: completion tokens as the API counts them.
    """

    finish_reason: str
    stage: str | None
    text: str
    tokens: int

    @property
    def refused(self) -> bool:
        """Whether users saw a refusal."""
        return self.finish_reason == "content_filter"


class Kept:
    """Answers by the digests of their requests, one a line of a file. A line that a stop cut short is dropped."""

    def __init__(self, path: Path, commit: str) -> None:
        self._path = path
        self._commit = commit
        self._replies: dict[str, Reply] = {}
        self.commits: set[str] = set()
        """Of the code that gave the answers that were used."""
        self._by_digest: dict[str, str] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        if lines and not lines[-1].endswith("\n"):
            path.write_text("".join(lines[:-1]), encoding="utf-8")
            lines.pop()
        for row in map(json.loads, lines):
            self._replies[row["request"]] = Reply(**row["reply"])
            self._by_digest[row["request"]] = row["commit"]

    def find(self, request: Request) -> Reply | None:
        """The answer, where there is one."""
        digest = request.digest
        if digest in self._replies:
            self.commits.add(self._by_digest[digest])
        return self._replies.get(digest)

    def add(self, cell: str, request: Request, reply: Reply) -> None:
        """Keeps an answer, on disk too."""
        digest = request.digest
        self._replies[digest] = reply
        self._by_digest[digest] = self._commit
        self.commits.add(self._commit)
        row = {"cell": cell, "request": digest, "commit": self._commit, "reply": asdict(reply)}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


Connect = Callable[[], AbstractAsyncContextManager[httpx.AsyncClient]]


class Asker:
    """A server that starts when the first answer is needed that is not kept."""

    def __init__(self, kept: Kept, connect: Connect, concurrency: int) -> None:
        self._kept = kept
        self._connect = connect
        self._gate = asyncio.Semaphore(concurrency)
        self._starting = asyncio.Lock()
        self._stack = AsyncExitStack()
        self._served: tuple[httpx.AsyncClient, str] | None = None

    async def __aenter__(self) -> "Asker":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def ask(self, cell: str, request: Request) -> Reply:
        """The kept answer, or the server's. Raises AskingError."""
        if (found := self._kept.find(request)) is not None:
            return found
        async with self._gate:
            client, model = await self._client()
            response = await client.post(request.path, json={"model": model, **request.body})
        reply = _reply(response, request)
        self._kept.add(cell, request, reply)
        return reply

    async def ask_all(self, cell: str, requests: Iterable[Request]) -> list[Reply]:
        """All answers, several asked at a time."""
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self.ask(cell, request)) for request in requests]
        return [task.result() for task in tasks]

    async def _client(self) -> tuple[httpx.AsyncClient, str]:
        async with self._starting:
            if self._served is None:
                client = await self._stack.enter_async_context(self._connect())
                models = (await client.get("/v1/models")).raise_for_status().json()
                self._served = client, models["data"][0]["id"]
            return self._served


def _reply(response: httpx.Response, request: Request) -> Reply:
    found: dict[str, Any] = response.json()
    error = found.get("error") or {}
    if response.status_code == 400 and error.get("code") == "context_length_exceeded":
        return Reply(TOO_LONG, None, "", 0)
    if response.status_code != 200:
        raise AskingError(f"{request.path}: got HTTP {response.status_code}: {error.get('message', found)}")
    choice = found["choices"][0]
    text = choice["message"]["content"] if request.path == CHAT else choice["text"]
    stage = (choice.get("guard") or {}).get("stage")
    return Reply(choice["finish_reason"], stage, text or "", found["usage"]["completion_tokens"])
