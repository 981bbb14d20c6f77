"""Somebody who behaves, and asks all the while."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import httpx

_QUESTION = {"messages": [{"role": "user", "content": "What is the capital of France?"}], "temperature": 0}
_ANSWER = "Paris"
_TIMEOUT_SECONDS = 30.0
ADDRESS = "127.0.0.2"
"""Another than the attacker's, as anybody else has."""


@dataclass(frozen=True)
class Asked:
    """One request: how long it took, and what was wrong with its answer."""

    seconds: float
    wrong: str | None


class Bystander:
    """Asks by turns on a connection that is kept and on one of its own."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._kept = self._client()
        self._count = 0

    def _client(self) -> httpx.AsyncClient:
        transport = httpx.AsyncHTTPTransport(local_address=ADDRESS)
        return httpx.AsyncClient(transport=transport, base_url=self._url, timeout=_TIMEOUT_SECONDS)

    async def ask(self) -> Asked:
        """One request."""
        self._count += 1
        started = time.perf_counter()
        try:
            if self._count % 2:
                reply = await self._kept.post("/v1/chat/completions", json=_QUESTION)
            else:
                async with self._client() as client:
                    reply = await client.post("/v1/chat/completions", json=_QUESTION)
        except httpx.HTTPError as error:
            return Asked(time.perf_counter() - started, type(error).__name__)
        wrong = None if reply.status_code == 200 and _ANSWER in reply.text else f"status {reply.status_code}"
        return Asked(time.perf_counter() - started, wrong)

    async def close(self) -> None:
        """Gives the kept connection up."""
        await self._kept.aclose()


def slow_from(before: Sequence[Asked]) -> float:
    """From how many seconds on a request counts as disturbed: 10 times the median of those before, at least 1."""
    return max(1.0, 10 * median(asked.seconds for asked in before))


def disturbed(asked: Asked, slow: float) -> bool:
    """Whether a request was answered wrongly, not at all, or late."""
    return asked.wrong is not None or asked.seconds > slow
