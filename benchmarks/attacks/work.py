"""Attacks by what one request asks the server to work out. Where there are keys, any key will do for them."""

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial

from benchmarks.attacks.attack import Attack, Target

_MB = 1 << 20
_ROOM = _MB - 512
"""The default of --max-body-bytes, less what stands around a text."""
_CHAT, _COMPLETION = "/v1/chat/completions", "/v1/completions"
_GONE = (OSError, EOFError)
_END = "<|end|>"


def _chat(*texts: str) -> object:
    return {"messages": [{"role": "user", "content": text} for text in texts]}


def _with(name: str, value: object) -> object:
    return {"prompt": "The capital of", "max_tokens": 1, name: value}


Make = Callable[[], tuple[str, object]]
BODIES: Mapping[str, Make] = {
    "262,000 prompts": lambda: (_COMPLETION, {"prompt": ["a"] * 262_000}),
    "28,000 messages of a special token": lambda: (_CHAT, _chat(*[_END] * 28_000)),
    "30,000 empty messages": lambda: (_CHAT, _chat(*[""] * 30_000)),
    "a text in Chinese": lambda: (_CHAT, _chat("中" * (_ROOM // 3))),
    "a text of digits": lambda: (_CHAT, _chat("7" * _ROOM)),
    "a text of special tokens": lambda: (_CHAT, _chat(_END * (_ROOM // len(_END)))),
    "a text of one letter": lambda: (_CHAT, _chat("a" * _ROOM)),
    "a prompt to be judged": lambda: ("/v1/moderations", {"input": "7" * _ROOM}),
    "80,000 unknown names": lambda: (_CHAT, {f"k{index}": 0 for index in range(80_000)}),
    "90,000 wrong messages": lambda: (_CHAT, {"messages": [{"x": 0}] * 90_000}),
    "500,000 allowed tokens": lambda: (_COMPLETION, _with("allowed_token_ids", [1] * 500_000)),
    "500,000 stop tokens": lambda: (_COMPLETION, _with("stop_token_ids", [1] * 500_000)),
    "80,000 biases": lambda: (_COMPLETION, _with("logit_bias", {str(token): 1 for token in range(80_000)})),
    "100,000 bad words": lambda: (_COMPLETION, _with("bad_words", [f"w{index}" for index in range(100_000)])),
    "one long bad word": lambda: (_COMPLETION, _with("bad_words", ["7" * _ROOM])),
    "a long pattern": lambda: (_COMPLETION, _with("structured_outputs", {"regex": "(a|b)*" * 10_000})),
    "an array of many items": lambda: (
        _COMPLETION,
        _with("structured_outputs", {"json": {"type": "array", "items": {"type": "string"}, "minItems": 100_000_000}}),
    ),
    "patterns that all must match": lambda: (
        _COMPLETION,
        _with("structured_outputs", {"json": {"allOf": [{"pattern": f".*{i}.*x{i}"} for i in range(50)]}}),
    ),
    "500,000 tokens to be read": lambda: ("/detokenize", {"tokens": [1] * 500_000}),
}
"""Bodies that fit --max-body-bytes, each to the route that has most to do with it."""


def request(path: str, body: bytes) -> bytes:
    """One request, whose connection ends with its answer."""
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def _written(make: Make) -> bytes:
    path, body = make()
    text = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
    assert len(text) <= _MB, f"{len(text)} bytes would be refused unread"
    return request(path, text)


async def one_body(written: Callable[[], bytes], at_once: int, target: Target) -> str:
    """The same request again and again, each once the answer to the last has come."""
    sent, statuses = written(), Counter[str]()

    async def one() -> None:
        while True:
            with suppress(*_GONE):
                reader, writer = await asyncio.open_connection(target.host, target.port)
                try:
                    writer.write(sent)
                    await writer.drain()
                    status = (await reader.readline()).decode().partition(" ")[2][:3]
                    statuses[status or "ended"] += 1
                finally:
                    writer.transport.abort()

    with suppress(TimeoutError):
        async with asyncio.timeout(target.seconds), asyncio.TaskGroup() as group:
            for _ in range(at_once):
                group.create_task(one())
    return ", ".join(f"{count:,} times {status}" for status, count in sorted(statuses.items())) or "no answer"


async def hang_ups(target: Target) -> str:
    """Six chats of 1 MiB at a time, whose senders hang up as soon as they are sent."""
    sent, count = _written(BODIES["a text of special tokens"]), 0

    async def one() -> None:
        nonlocal count
        while True:
            with suppress(*_GONE):
                _, writer = await asyncio.open_connection(target.host, target.port)
                try:
                    writer.write(sent)
                    await writer.drain()
                    count += 1
                finally:
                    writer.close()
                    with suppress(*_GONE):  # or it would take the place of a cancellation
                        await writer.wait_closed()

    with suppress(TimeoutError):
        async with asyncio.timeout(target.seconds), asyncio.TaskGroup() as group:
            for _ in range(6):
                group.create_task(one())
    return f"{count:,} sent and hung up"


def _deep() -> bytes:
    return request(_CHAT, b'{"messages":' + b"[" * (_ROOM // 2) + b"]" * (_ROOM // 2) + b"}")


def _long_number() -> bytes:
    return request(_COMPLETION, b'{"prompt":"a","seed":' + b"9" * _ROOM + b"}")


def _twice() -> bytes:
    return request(_COMPLETION, b"{" + b'"prompt":"a",' * 75_000 + b'"max_tokens":1}')


_AT_ONCE = 2
ATTACKS = (
    *(
        Attack(
            name,
            f"{_AT_ONCE} senders of 1 MiB or less, again and again",
            partial(one_body, partial(_written, make), _AT_ONCE),
        )
        for name, make in BODIES.items()
    ),
    Attack("hang-ups", "6 senders of chats of 1 MiB, who hang up once they are sent", hang_ups),
    Attack("deep JSON", "500,000 levels", partial(one_body, _deep, _AT_ONCE)),
    Attack("a long number", "of a million digits", partial(one_body, _long_number, _AT_ONCE)),
    Attack("a key 75,000 times", "in one object", partial(one_body, _twice, _AT_ONCE)),
)
