"""Asks a skillguard server as any client would, and reads from its answers what an evaluation needs."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from server.errors import EvaluationError

CHAT, TEXT, CHECKS = "/v1/chat/completions", "/v1/completions", "/v1/checks"
TIMEOUT_SECONDS = 600.0
"""For one answer, its place in the queue included."""
PATIENCE_SECONDS = 900.0
"""How long one item is retried while the server says that it is full or not ready."""
TOO_LONG = "too_long"
"""The finish reason of a prompt that does not fit into the model's context: there is no answer, and cannot be one."""
_MOST_LOGPROBS = {CHAT: 20, TEXT: 5}
"""What each endpoint gives at most."""


@dataclass(frozen=True)
class Reply:
    """One answer. An abstention has no text: what it says is the operator's."""

    text: str
    finish_reason: str
    guard: Mapping[str, Any] | None
    """The hit that withheld it; None where nothing was withheld."""
    likeliest: str | None = None
    """The most likely of the letters asked for; None where none was among the most likely tokens."""

    @property
    def abstained(self) -> bool:
        """Whether the answer was withheld."""
        return self.guard is not None


@dataclass(frozen=True)
class Prompt:
    """A prompt and its endpoint."""

    text: str
    chat: bool

    @property
    def fields(self) -> dict[str, Any]:
        """As a request body has it."""
        return {"messages": [{"role": "user", "content": self.text}]} if self.chat else {"prompt": self.text}


class Client:
    """One server. `sleep` is asyncio's but in tests."""

    def __init__(
        self, http: httpx.AsyncClient, model: str, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    ) -> None:
        self._http = http
        self._model = model
        self._sleep = sleep

    async def ask(self, prompt: Prompt, sampling: Mapping[str, Any], letters: str = "") -> Reply:
        """One answer. With `letters`, the most likely of them as the first token. Raises EvaluationError."""
        path = CHAT if prompt.chat else TEXT
        body = {"model": self._model, **prompt.fields, **sampling}
        if letters:
            most = _MOST_LOGPROBS[path]
            body |= {"logprobs": True, "top_logprobs": most} if prompt.chat else {"logprobs": most}
        response = await self._post(path, body)
        found = _object(response)
        error = found.get("error") or {}
        if response.status_code == 400 and error.get("code") == "skill_abstained":
            return Reply("", "error", error.get("guard") or {})
        if response.status_code == 400 and error.get("code") == "context_length_exceeded":
            return Reply(str(error.get("message")), TOO_LONG, None)
        _require_ok(response, found)
        choice = found["choices"][0]
        reason = str(choice["finish_reason"])
        if "guard" in choice or reason == "content_filter":
            return Reply("", reason, choice.get("guard") or {})
        text = choice["message"]["content"] if prompt.chat else choice["text"]
        return Reply(text, reason, None, _likeliest(choice["logprobs"], letters, prompt.chat) if letters else None)

    async def ratios(self, prompt: Prompt) -> dict[str, float]:
        """Score over tau at the prompt's last token of every guard that has a tau; needs an operator's key."""
        response = await self._post(CHECKS, {"model": self._model, **prompt.fields})
        found = _object(response)
        _require_ok(response, found)
        return {row["guard"]: row["score"] / row["tau"] for row in found["data"] if row.get("tau") is not None}

    async def _post(self, path: str, body: Mapping[str, Any]) -> httpx.Response:
        """Comes back when the server says so, as long as it says so."""
        waited = 0.0
        while True:
            try:
                response = await self._http.post(path, json=body)
            except httpx.HTTPError as error:
                raise EvaluationError(f"{path}: no answer ({error!r}); is the server still running?") from error
            if response.status_code not in (429, 503) or "retry-after" not in response.headers:
                return response
            seconds = _seconds(response.headers["retry-after"])
            waited += seconds
            if waited > PATIENCE_SECONDS:
                raise EvaluationError(
                    f"{path}: still HTTP {response.status_code} after {waited:.0f} s; lower --concurrency"
                )
            await self._sleep(seconds)


def _seconds(header: str) -> float:
    """Retry-After, which may be a date as well."""
    try:
        return max(float(header), 0.1)
    except ValueError:
        return 5.0


def _object(response: httpx.Response) -> dict[str, Any]:
    try:
        found = response.json()
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise EvaluationError(
            f"got HTTP {response.status_code} and no JSON object; wanted a skillguard server's answer"
        )
    return found


def _require_ok(response: httpx.Response, found: Mapping[str, Any]) -> None:
    if response.status_code != 200:
        error = found.get("error") or {}
        raise EvaluationError(f"got HTTP {response.status_code}: {error.get('message', found)}")


def _likeliest(logprobs: Mapping[str, Any], letters: str, chat: bool) -> str | None:
    """The best letter among the alternatives of the first token, whatever white space is in its token."""
    pairs: Sequence[tuple[str, float]]
    if chat:
        tokens = logprobs["content"][:1]
        pairs = [(top["token"], top["logprob"]) for token in tokens for top in (token, *token["top_logprobs"])]
    else:
        pairs = [pair for top in logprobs["top_logprobs"][:1] for pair in top.items()]
    found = [(logprob, token.strip()) for token, logprob in pairs if token.strip() in set(letters)]
    return max(found)[1] if found else None
