"""Callers who ask for the skill and for other things all the while, and look for one token that they must not get."""

import itertools
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from benchmarks.watched.load import others, prompts
from server.config import ServerConfig

SKILL = "mathematics"
HANG_SECONDS = 60.0
"""Without a word for so long is a hang."""
_AT_A_TIME = 6
_TRIED = 24
_LEAST = 12
REFUSAL = ServerConfig().abstain_text


class WeakGuardError(RuntimeError):
    """Too few prompts of the skill are withheld without any fault."""


@dataclass(frozen=True)
class Reply:
    """How one request ended, in a word, and what it said."""

    ended: str
    content: str

    @property
    def leaked(self) -> str:
        """What a prompt that must be withheld told of the model's answer; empty where nothing."""
        return self.content.replace(REFUSAL, "").strip()


def ask(client: httpx.Client, text: str, *, stream: bool, max_tokens: int = 24) -> Reply:
    """One question. Whatever goes wrong is a word too; nothing is raised."""
    messages = [{"role": "user", "content": text}]
    body = {"messages": messages, "max_tokens": max_tokens, "temperature": 0, "stream": stream}
    said: list[str] = []
    try:
        if not stream:
            reply = client.post("/v1/chat/completions", json=body)
            if reply.status_code != 200:
                return Reply(_refusal(reply.status_code, reply.json()), "")
            (choice,) = reply.json()["choices"]
            return Reply(choice["finish_reason"], choice["message"]["content"] or "")
        with client.stream("POST", "/v1/chat/completions", json=body) as streamed:
            if streamed.status_code != 200:
                streamed.read()
                return Reply(_refusal(streamed.status_code, streamed.json()), "")
            return Reply(_read(streamed.iter_lines(), said), "".join(said))
    except httpx.ReadTimeout:
        return Reply("hang", "".join(said))
    except (httpx.HTTPError, json.JSONDecodeError) as error:
        return Reply(f"connection: {type(error).__name__}", "".join(said))


def _read(lines: Iterator[str], said: list[str]) -> str:
    """How a stream ended; `said` takes its pieces."""
    reason = "cut"
    for line in lines:
        data = line.removeprefix("data: ")
        if not data or data == "[DONE]":
            continue
        event = json.loads(data)
        if "error" in event:
            return f"error in stream: {event['error']['code']}"
        for choice in event["choices"]:
            said.append(choice["delta"].get("content") or "")
            reason = choice["finish_reason"] or reason
    return reason


def _refusal(status: int, body: Any) -> str:
    return f"{status} {body['error']['code']}"


def open_client(url: str, key: str | None) -> httpx.Client:
    """As callers have it."""
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    return httpx.Client(base_url=url, headers=headers, timeout=HANG_SECONDS, limits=limits)


class Callers:
    """Threads that ask. `withheld`: prompts that the guard withholds where nothing is wrong; `other`: the rest."""

    def __init__(self, url: str, key: str | None = None) -> None:
        self.url, self.key = url, key
        self.client = open_client(url, key)
        self.other = others(SKILL)
        tried = [(text, ask(self.client, text, stream=False)) for text in prompts(SKILL)[:_TRIED]]
        self.withheld = [text for text, reply in tried if reply.ended == "content_filter" and not reply.leaked]
        if len(self.withheld) < _LEAST:
            raise WeakGuardError(f"{len(self.withheld)} of {_TRIED} prompts of {SKILL} are withheld, wanted {_LEAST}")
        self.of_skill: Counter[str] = Counter()
        """How requests for the skill ended."""
        self.of_other: Counter[str] = Counter()
        self.leaked: list[str] = []
        self._over = threading.Event()
        self._progress = threading.Condition()

    @contextmanager
    def asking(self) -> Iterator[None]:
        """They ask meanwhile; on leaving each ends the request that it has begun."""
        threads = [threading.Thread(target=self._ask_on, args=(index,), daemon=True) for index in range(_AT_A_TIME)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._over.set()
            for thread in threads:
                thread.join()
            self.client.close()

    def await_replies(self, count: int) -> None:
        """Returns once so many more requests ended, however they did."""
        with self._progress:
            wanted = self._ended + count
            self._progress.wait_for(lambda: self._ended >= wanted, timeout=count * HANG_SECONDS)

    @property
    def _ended(self) -> int:
        return self.of_skill.total() + self.of_other.total()

    def _ask_on(self, index: int) -> None:
        for count in itertools.count(index):
            if self._over.is_set():
                return
            skill = count % 3 != 0
            texts = self.withheld if skill else self.other
            text = texts[count % len(texts)]
            reply = ask(self.client, text, stream=count % 2 == 0)
            with self._progress:
                (self.of_skill if skill else self.of_other)[reply.ended] += 1
                if skill and (leaked := reply.leaked):
                    self.leaked.append(f"{text!r}: {leaked!r}")
                self._progress.notify_all()
            if reply.ended.startswith(("503", "connection")):
                self._over.wait(0.05)  # a server that is down is not hammered


def until(condition: Callable[[], bool], seconds: float = HANG_SECONDS) -> bool:
    """Whether something is so within that time."""
    pause = threading.Event()
    for _ in range(int(seconds / 0.05)):
        if condition():
            return True
        pause.wait(0.05)
    return False
