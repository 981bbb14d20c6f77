"""uvicorn's protocol on httptools, bounded: what one connection may make the server keep, and for how long.

httptools keeps whatever stands between two events of its parser, and uvicorn every pipelined request that one piece of
bytes holds. Here both are counted while they come in.
"""

import asyncio
import fcntl
import json
import sys
import termios
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from typing import Any

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from server.edge.connections import Connections, Ended, Phase
from server.errors import (
    HeadersTooLargeError,
    MalformedRequestError,
    PipelineError,
    RequestError,
    RequestTimeoutError,
    TooManyConnectionsError,
    error_body,
    error_headers,
    reply_of,
)

MAX_HEAD_BYTES = 64 * 1024
"""Of a request line and headers, or of trailers; also what may come in without an event of the parser."""
MAX_HEADERS = 100
MAX_PIPELINED = 8
"""Requests that wait on one connection while another is answered."""

_BODILESS = (b"GET", b"HEAD", b"OPTIONS")
"""Methods whose bodies nobody reads, as of probes."""

_WHY: dict[type[RequestError], Ended] = {
    MalformedRequestError: Ended.MALFORMED,
    HeadersTooLargeError: Ended.HEADERS_TOO_LARGE,
    PipelineError: Ended.PIPELINE,
    TooManyConnectionsError: Ended.HANG_UPS,
}
_TOLD: dict[Ended, Callable[[], RequestError]] = {
    Ended.HEADER_TIMEOUT: lambda: RequestTimeoutError("The request's headers took too long; send it at once."),
    Ended.BODY_TIMEOUT: lambda: RequestTimeoutError("The request's body took too long; send it at once."),
    Ended.FULL: lambda: TooManyConnectionsError("The server has as many connections as it takes; try again."),
    Ended.ADDRESS_FULL: lambda: TooManyConnectionsError(
        "Your address has as many connections as it may have; use those, or wait for one to end."
    ),
}


class _Flow(FlowControl):
    """Reads nothing more while requests are queued: whoever waits for a hang-up would else let in the next ones."""

    def __init__(self, transport: asyncio.Transport, queued: Callable[[], bool]) -> None:
        super().__init__(transport)
        self._queued = queued

    def resume_reading(self) -> None:
        if not self._queued():
            super().resume_reading()


class BoundedProtocol(HttpToolsProtocol):
    """One connection, as the table of all sees it."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        table: Connections,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._table = table
        self.phase = Phase.HEAD
        self.since = table.clock()
        self.unread = 0
        self.unread_since: float | None = None
        self._answering: RequestResponseCycle | None = None
        """The one that is being answered, where `cycle` is the newest."""
        self._in_head = False
        self._head_bytes = self._headers_seen = 0
        self._unheard = 0
        """Bytes since the parser last had something to say."""
        self._counted = False
        """Whether it was ended by us, for a reason that the table has."""

    # asyncio's side

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow = _Flow(transport, lambda: bool(self.pipeline))
        transport.set_write_buffer_limits(high=0)  # so that each byte that is not read is known of
        refused = self._table.add(self, self.client[0] if self.client else "")
        if refused is not None:
            self.end(refused)

    def connection_lost(self, exc: Exception | None) -> None:
        self._given_up()
        self._table.remove(self)
        super().connection_lost(exc)
        self._unset_keepalive_if_required()  # which uvicorn leaves where there was an error
        self._hang_up()

    def data_received(self, data: bytes) -> None:
        self._unheard += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # answered as if it had not asked for another protocol; what stands behind it is of that protocol
        except httptools.HttpParserError as error:
            cause = error.__context__
            self._refuse(cause if isinstance(cause, RequestError) else MalformedRequestError("This is not HTTP/1.1."))
        else:
            if self._unheard > MAX_HEAD_BYTES:
                self._refuse(_too_large())

    def pause_writing(self) -> None:
        super().pause_writing()
        self.unread, self.unread_since = self.unread_now(), self._table.clock()

    def resume_writing(self) -> None:
        super().resume_writing()
        self.unread_since = None

    # the parser's side

    def on_message_begin(self) -> None:
        if len(self.pipeline) >= MAX_PIPELINED:
            raise PipelineError(f"More than {MAX_PIPELINED} requests wait for the answer before theirs.")
        self._unset_keepalive_if_required()  # and not at any byte: empty lines before a request are none of it
        super().on_message_begin()
        self._in_head = True
        self._head_bytes = self._headers_seen = 0
        if self.phase is not Phase.ANSWER:
            self._enter(Phase.HEAD)

    def on_url(self, url: bytes) -> None:
        self._count_head(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers_seen += 1
        self._count_head(len(name) + len(value))
        if self._in_head:  # a trailer would be taken for a header by whoever looks at them later
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._unheard = 0
        self._in_head = False
        hosts = sum(name == b"host" for name, _ in self.headers)
        if hosts > 1 or (hosts == 0 and self.parser.get_http_version() == "1.1"):
            raise MalformedRequestError(f"Got {hosts} Host headers; send one.")
        if self.parser.should_upgrade() and any(
            name in (b"content-length", b"transfer-encoding") and value != b"0" for name, value in self.headers
        ):
            raise MalformedRequestError(
                "A request with a body asks for another protocol (Upgrade), which there is none of; leave the header "
                "out. Java's HttpClient does with version(HTTP_1_1)."
            )
        waits = self._answering is not None and not self._answering.response_complete  # that one is let be
        if not waits and self.parser.get_method() not in _BODILESS and self._table.must_wait(self):
            raise TooManyConnectionsError(
                "Your address left too many requests before their answers began; wait for answers, and try again in a "
                "second."
            )
        super().on_headers_complete()
        if self._answering is self.cycle:
            self._enter(Phase.BODY)

    def on_body(self, body: bytes) -> None:
        self._unheard = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._unheard = 0
        super().on_message_complete()
        self.cycle.more_body = False
        if self._answering is self.cycle:
            self._enter(Phase.KEPT if self.cycle.response_complete else Phase.ANSWER)

    # uvicorn's side

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answering = cycle
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        super().on_response_complete()  # which begins with the next one, where there is one
        assert self._answering is not None
        if self._answering.more_body:
            self._enter(Phase.BODY)
        elif not self._answering.response_complete:
            self._enter(Phase.ANSWER)
        else:
            self._enter(Phase.HEAD if self._in_head else Phase.KEPT)

    # the table's side

    def unread_now(self) -> int:
        """Bytes that the other end has not taken: ours, and those that the kernel holds, which may be megabytes."""
        held = bytearray(4)
        connected = self.transport.get_extra_info("socket")
        if connected is not None and not self.transport.is_closing():
            with suppress(OSError):  # on a platform that does not say, ours alone count
                fcntl.ioctl(connected.fileno(), termios.TIOCOUTQ, held)
        return int(self.transport.get_write_buffer_size()) + int.from_bytes(held, sys.byteorder)

    def end(self, why: Ended) -> None:
        self._count(why)
        silent = self.phase is Phase.HEAD and not self._in_head and why is Ended.HEADER_TIMEOUT
        if why in _TOLD and not silent and self._can_answer:
            self._tell(_TOLD[why]())
        else:
            self._abort()

    def _count(self, why: Ended) -> None:
        """Once: one that is closing may be found overdue again, and is then ended at once."""
        if not self._counted:
            self._table.count(why)
        self._counted = True

    def _enter(self, phase: Phase) -> None:
        self.phase, self.since = phase, self._table.clock()

    def _count_head(self, more: int) -> None:
        self._head_bytes += more
        if self._head_bytes > MAX_HEAD_BYTES or self._headers_seen > MAX_HEADERS:
            raise _too_large()

    def _refuse(self, error: RequestError) -> None:
        self._count(_WHY[type(error)])
        if not isinstance(error, TooManyConnectionsError):
            self._given_up()
        if self._can_answer:
            self._tell(error)
        else:
            self._abort()

    @property
    def _can_answer(self) -> bool:
        """Whether the next answer on the wire would be taken for that of the request which is refused."""
        of = self._answering
        if self.transport.is_closing() or self.unread_since is not None or self.pipeline:
            return False
        return of is None or (not of.more_body if of.response_complete else of.more_body and not of.response_started)

    def _tell(self, error: RequestError) -> None:
        """Answers, and closes."""
        self._hang_up()
        reply, body = reply_of(error), json.dumps(error_body(error, "")).encode()
        headers = {
            **error_headers(error),
            "content-type": "application/json",
            "content-length": str(len(body)),
            "connection": "close",
        }
        first = f"HTTP/1.1 {reply.status} {HTTPStatus(reply.status).phrase}"
        lines = [first, *(f"{name}: {value}" for name, value in headers.items()), "", ""]
        self.transport.write("\r\n".join(lines).encode() + body)
        self.transport.close()

    def _abort(self) -> None:
        """Ends it at once: to close would wait for the other end to read what was written."""
        self._hang_up()
        self.transport.abort()

    def _given_up(self) -> None:
        """Counts the request that is being answered where the other end leaves, or spoils, what has not begun."""
        of = self._answering
        if of is None or of.response_started or of.disconnected:
            return
        if of.scope["method"].encode() not in _BODILESS:
            self._table.abandoned(self)

    def _hang_up(self) -> None:
        """Tells the request that is being answered, which need not be the newest."""
        if self._answering is not None and not self._answering.response_complete:
            self._answering.disconnected = True
            self._answering.message_event.set()


def protocol_of(table: Connections) -> type[asyncio.Protocol]:
    """What uvicorn is given in the place of a class."""
    return partial(BoundedProtocol, table=table)  # type: ignore[return-value]


def _too_large() -> HeadersTooLargeError:
    return HeadersTooLargeError(f"The headers are more than {MAX_HEADERS}, or than {MAX_HEAD_BYTES} bytes; send less.")
