"""A server that only sends: as fast as the client can be asked. It answers with what it is told to, from memory.

    python -m benchmarks.load.ceiling [--port 0] [--tokens 64]

Its events are as long as a real server's and go out one write each, so the client reads as many.
"""

import argparse
import asyncio
import json
from typing import Any

from uvloop import run


def _event(**more: object) -> bytes:
    head = {"id": f"chatcmpl-{'0' * 32}", "object": "chat.completion.chunk", "created": 1700000000, "model": "ceiling"}
    return b"data: " + json.dumps({**head, **more}, separators=(",", ":")).encode() + b"\n\n"


def _piece(text: str, finish: str | None) -> dict[str, object]:
    return {"index": 0, "finish_reason": finish, "delta": {"content": text}, "logprobs": None}


class Sender(asyncio.Protocol):
    """One connection."""

    def __init__(self, tokens: int) -> None:
        usage = {"prompt_tokens": 1, "completion_tokens": tokens, "total_tokens": tokens + 1}
        events = [_event(choices=[_piece(" word", None)])] * tokens
        events += [_event(choices=[_piece("", "length")]), _event(choices=[], usage=usage), b"data: [DONE]\n\n"]
        self._parts = [b"%x\r\n%s\r\n" % (len(event), event) for event in events]
        self._held = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport

    def data_received(self, data: bytes) -> None:
        self._held += data
        head, found, body = self._held.partition(b"\r\n\r\n")
        if not found:
            return
        length = next(
            int(line.split(b":")[1]) for line in head.split(b"\r\n") if line[:15].lower() == b"content-length:"
        )
        if len(body) < length:
            return
        self._held = body[length:]
        self._transport.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        self._send(0)

    def _send(self, index: int) -> None:
        if index == len(self._parts):
            self._transport.write(b"0\r\n\r\n")
            return
        self._transport.write(self._parts[index])
        asyncio.get_running_loop().call_soon(self._send, index + 1)


async def _serve(port: int, tokens: int) -> None:
    server = await asyncio.get_running_loop().create_server(lambda: Sender(tokens), "127.0.0.1", port)
    print(f"  ready  http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", flush=True)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--tokens", type=int, default=64)
    args = parser.parse_args()
    run(_serve(args.port, args.tokens))


if __name__ == "__main__":
    main()
