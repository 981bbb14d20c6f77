"""Attacks on the HTTP edge: nothing of them needs a key, and most is over before one would be looked at."""

import asyncio
import json
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress

from benchmarks.attacks.attack import Attack, Target

_MB = 1 << 20
_PIECE = 64 * 1024
_GONE = (OSError, EOFError, asyncio.IncompleteReadError)
_REQUEST_LINE = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class _Seen:
    """What a number of connections met."""

    def __init__(self) -> None:
        self.opened = self.ended = self.sent = self.most = 0

    def __str__(self) -> str:
        return f"{self.opened:,} connections opened, {self.ended:,} ended by the server"


async def _again_and_again(target: Target, at_once: int, talk: Talk, seen: _Seen, receive_buffer: int = 0) -> None:
    """Keeps that many connections up for the attack's time: one that the server ends is opened anew, soon."""

    async def one() -> None:
        while True:
            with suppress(*_GONE):
                opened = socket.socket()
                if receive_buffer:
                    opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
                opened.setblocking(False)
                await asyncio.get_running_loop().sock_connect(opened, (target.host, target.port))
                reader, writer = await asyncio.open_connection(sock=opened, limit=4096)
                seen.opened += 1
                try:
                    await talk(reader, writer)
                finally:
                    writer.transport.abort()
                seen.ended += 1
            await asyncio.sleep(0.2)

    with suppress(TimeoutError):
        async with asyncio.timeout(target.seconds), asyncio.TaskGroup() as group:
            for _ in range(at_once):
                group.create_task(one())


async def _until_ended(reader: asyncio.StreamReader) -> None:
    while await reader.read(_PIECE):
        pass


async def _flood(target: Target, head: bytes, pieces: Callable[[], Iterable[bytes]], at_once: int = 2) -> str:
    """Sends without end and reads nothing; says how much a connection took."""
    seen = _Seen()

    async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sent = 0
        writer.write(head)
        try:
            for piece in pieces():
                writer.write(piece)
                await writer.drain()
                sent += len(piece)
            await writer.wait_closed()
        finally:
            seen.most = max(seen.most, sent)

    await _again_and_again(target, at_once, talk, seen)
    return f"{seen}; at most {seen.most / _MB:.1f} MB taken of one"


async def idle(target: Target) -> str:
    """1,100 connections that say nothing."""
    seen = _Seen()
    await _again_and_again(target, 1_100, lambda reader, _: _until_ended(reader), seen)
    return str(seen)


async def endless_headers(target: Target) -> str:
    """Header after header."""
    lines = b"".join(b"x-%d: %s\r\n" % (index, b"a" * 1_000) for index in range(64))
    return await _flood(target, b"GET /health HTTP/1.1\r\nHost: localhost\r\n", lambda: [lines] * 6_000)


async def one_huge_header(target: Target) -> str:
    """One header of 100 MB."""
    head = b"GET /health HTTP/1.1\r\nHost: localhost\r\nx-huge: "
    return await _flood(target, head, lambda: [b"a" * _PIECE] * (100 * _MB // _PIECE))


async def endless_trailers(target: Target) -> str:
    """Header after header behind a body."""
    head = _REQUEST_LINE + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n"
    lines = b"".join(b"x-%d: %s\r\n" % (index, b"a" * 1_000) for index in range(64))
    return await _flood(target, head, lambda: [lines] * 6_000)


async def unread_pipeline(target: Target) -> str:
    """GET after GET, whose answers are never read."""
    request = b"GET /ready HTTP/1.1\r\nHost: localhost\r\n\r\n"
    return await _flood(target, b"", lambda: [request * (_PIECE // len(request))] * (18 * _MB // _PIECE))


async def trickled_body(target: Target) -> str:
    """Bodies of 1,000 bytes, of which one comes each second."""
    seen = _Seen()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async def trickle() -> None:
            writer.write(_REQUEST_LINE + b"Content-Length: 1000\r\n\r\n")
            while True:
                writer.write(b"{")
                await writer.drain()
                await asyncio.sleep(1)

        trickling = asyncio.create_task(trickle())
        try:
            await _until_ended(reader)
        finally:
            trickling.cancel()
            await asyncio.gather(trickling, return_exceptions=True)

    await _again_and_again(target, 200, talk, seen)
    return str(seen)


async def slow_reader(target: Target) -> str:
    """Streamed answers that nobody reads. One of 60 tokens each: a model's time is no matter of the edge's."""
    seen = _Seen()
    body = json.dumps(
        {"prompt": "The capital of", "max_tokens": 60, "min_tokens": 60, "logprobs": 5, "stream": True}
    ).encode()
    request = (
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n" % len(body)
    )

    async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(request + body)
        await writer.wait_closed()

    await _again_and_again(target, 8, talk, seen, receive_buffer=2_048)
    return str(seen)


DOUBTFUL: dict[str, bytes] = {
    "two Content-Lengths": b"Host: localhost\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
    "Content-Length and Transfer-Encoding": b"Host: localhost\r\nContent-Length: 12\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "a folded header": b"Host: localhost\r\nx-a: b\r\n c\r\nContent-Length: 2\r\n\r\n{}",
    "two Hosts": b"Host: localhost\r\nHost: evil.example\r\nContent-Length: 2\r\n\r\n{}",
    "another's Host": b"Host: evil.example\r\nContent-Length: 2\r\n\r\n{}",
    "no Host": b"Content-Length: 2\r\n\r\n{}",
}
"""Requests that two programs in a row may read in two ways, or that a page of another origin sends."""


async def doubtful_requests(target: Target) -> str:
    """Each of DOUBTFUL, again and again, to a path that is a 200 for everybody."""
    statuses: dict[str, Counter[str]] = {name: Counter() for name in DOUBTFUL}
    with suppress(TimeoutError):
        async with asyncio.timeout(target.seconds):
            while True:
                for name, rest in DOUBTFUL.items():
                    reader, writer = await asyncio.open_connection(target.host, target.port)
                    writer.write(b"POST /ping HTTP/1.1\r\n" + rest)
                    statuses[name][(await reader.readline()).decode().partition(" ")[2][:3] or "ended"] += 1
                    writer.transport.abort()
                await asyncio.sleep(0.05)
    return "; ".join(f"{name}: {', '.join(sorted(seen))}" for name, seen in statuses.items())


ATTACKS = (
    Attack(
        "idle connections", "1,100 connections that say nothing, at most 1,024 descriptors", idle, descriptors=1_024
    ),
    Attack("endless headers", "header after header, 2 connections", endless_headers),
    Attack("one huge header", "one header of 100 MB, 2 connections", one_huge_header),
    Attack("endless trailers", "header after header behind a body, 2 connections", endless_trailers),
    Attack("unread pipeline", "18 MB of GET /ready, whose answers are never read, 2 connections", unread_pipeline),
    Attack("trickled bodies", "200 bodies of which a byte comes each second", trickled_body),
    Attack("slow readers", "8 streams with log-probabilities, never read", slow_reader),
    Attack("doubtful requests", "doubled and folded headers, another's Host", doubtful_requests),
)
