"""One request of many: sent, read to its end, timed. Nothing is parsed while it runs that can be parsed once.

A client shares the machine with what it measures, so it must cost little: aiohttp parses HTTP in C, an event counts by
its bytes, and JSON is read of an answer's first text and of its end alone.
"""

import json
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp

from benchmarks.load.prompts import Prompt

_TEXT = re.compile(rb'"(?:content|text|refusal)": ?"[^"]')
"""The first event that holds more than the role."""
_TIMEOUT = aiohttp.ClientTimeout(total=600)


class LoadError(RuntimeError):
    """A server answered with what no load can be measured by; the message holds it."""


@dataclass(frozen=True)
class Answer:
    """What came of one request. Seconds by one clock; `due` is when it was to be sent."""

    kind: str
    due: float
    first: float
    """When its first text was read; of an answer that is not streamed, all of it."""
    last: float
    tokens: int
    finish: str
    events: int

    @property
    def seconds(self) -> float:
        """Until its end. A client that was late counts against the server which kept it waiting."""
        return self.last - self.due


def body_of(prompt: Prompt, model: str, *, stream: bool, more: Mapping[str, object]) -> bytes:
    """The request, made before anything is timed."""
    asked: dict[str, object] = {
        "model": model,
        "messages": [{"role": "user", "content": prompt.text}],
        "max_tokens": prompt.max_tokens,
        "temperature": 0,
        "stream": stream,
        **more,
    }
    if stream:
        asked["stream_options"] = {"include_usage": True}
    return json.dumps(asked).encode()


class Client:
    """Many requests at a time to one server."""

    def __init__(self, url: str, key: str | None = None) -> None:
        """`url` ends in /v1, as OpenAI's SDKs take it."""
        self._url = f"{url.rstrip('/')}/chat/completions"
        headers = {"content-type": "application/json"}
        if key is not None:
            headers["authorization"] = f"Bearer {key}"
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), headers=headers, timeout=_TIMEOUT, auto_decompress=False
        )

    async def __aenter__(self) -> "Client":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def ask(self, kind: str, body: bytes, *, due: float | None = None) -> Answer:
        """Sends a request and reads its answer. Raises LoadError."""
        due = time.perf_counter() if due is None else due
        async with self._session.post(self._url, data=body) as response:
            if response.status != 200:
                raise LoadError(f"status {response.status}: {(await response.text())[:300]}")
            if response.content_type != "text/event-stream":
                whole = json.loads(await response.read())
                last = time.perf_counter()
                return _answer(kind, due, last, last, [whole], 1)
            first, held = 0.0, bytearray()
            async for part in response.content.iter_any():
                held += part
                if not first and _TEXT.search(held):
                    first = time.perf_counter()
            last = time.perf_counter()
        events = [line[6:] for line in held.split(b"\n") if line.startswith(b"data: ")]
        told = [json.loads(event) for event in events[-4:] if event.strip() != b"[DONE]"]
        return _answer(kind, due, first or last, last, told, len(events))


def _answer(kind: str, due: float, first: float, last: float, told: Iterable[Any], events: int) -> Answer:
    """`told`: the answer, or the last of its events, among which are its finish and its usage."""
    finish, tokens = None, None
    for each in told:
        if "error" in each:
            raise LoadError(f"an answer ended in {each['error']}")
        if each.get("usage"):
            tokens = each["usage"]["completion_tokens"]
        for choice in each.get("choices", ()):
            finish = choice.get("finish_reason") or finish
    if finish is None or tokens is None:
        raise LoadError("an answer ended without finish_reason or usage")
    return Answer(kind, due, first, last, int(tokens), str(finish), events)
