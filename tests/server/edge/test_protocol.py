"""What one connection may make the server keep, over real sockets."""

import socket

import pytest

from server.edge.connections import Ended
from server.edge.protocol import MAX_HEAD_BYTES, MAX_HEADERS, MAX_PIPELINED
from tests.server.edge.serving import GET, POST, Edge, post, rest_of, status_of

LINE = b"x-a: " + b"b" * 1000 + b"\r\n"
ENOUGH = 40 << 20
"""What no bounded server takes, and an unbounded one soon has."""


def flooded(served: Edge, head: bytes, piece: bytes) -> tuple[int, socket.socket]:
    """How many bytes were taken of a flood, and the connection. Nothing is read meanwhile."""
    connected = served.connect()
    connected.sendall(head)
    sent = 0
    try:
        while sent < ENOUGH:
            sent += connected.send(piece)
    except (ConnectionError, TimeoutError):
        pass
    return sent, connected


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\n", LINE * 60),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\nx-a: ", b"b" * 60_000),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\n", b"b" * 60_000),
        (b"GET /", b"b" * 60_000),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n", LINE * 60),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nx-a: ", b"b" * 60_000),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n2;a=", b"b" * 60_000),
    ],
    ids=["headers", "a header", "a header's name", "a path", "trailers", "a trailer", "a chunk's extension"],
)
def test_what_does_not_end_is_refused_early(served: Edge, head: bytes, piece: bytes) -> None:
    sent, _ = flooded(served, head, piece)
    assert sent < ENOUGH, "it took all that there was"
    assert served.ended(Ended.HEADERS_TOO_LARGE) >= 1


@pytest.mark.parametrize(
    "lines",
    [b"x-a: b\r\n" * (MAX_HEADERS + 1), b"x-a: " + b"b" * MAX_HEAD_BYTES + b"\r\n"],
    ids=["too many", "too long"],
)
def test_headers_that_end_are_bounded_too(served: Edge, lines: bytes) -> None:
    connected = served.connect()
    connected.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + lines + b"\r\n")
    assert status_of(connected) == 431
    assert b'"code": "headers_too_large"' in rest_of(connected)


def test_as_many_headers_as_may_be_are_answered(served: Edge) -> None:
    connected = served.connect()
    long = b"x-b: " + b"b" * (MAX_HEAD_BYTES // 2) + b"\r\n"
    lines = b"x-a: b\r\n" * (MAX_HEADERS - 2)
    connected.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + long + lines + b"\r\n")
    assert status_of(connected) == 200


def test_a_trailer_does_not_become_a_header(served: Edge) -> None:
    connected = served.connect()
    body = b'{"prompt": "trailed"}'
    connected.sendall(POST + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n" % (len(body), body))
    connected.sendall(b"content-encoding: gzip\r\nx-request-id: late\r\n\r\n")
    assert status_of(connected) == 200
    (submitted,) = served.engine.submitted
    assert served.call(lambda: bytes(submitted.prompt_token_ids)) == b"trailed"


def test_a_pipeline_that_is_never_read_is_not_taken_in(served: Edge) -> None:
    sent, _ = flooded(served, b"", GET * 500)
    assert sent < ENOUGH
    assert served.ended(Ended.PIPELINE) == 1


def test_pipelined_requests_are_answered_in_order(served: Edge) -> None:
    connected = served.connect()
    connected.sendall(post("first") + GET + b"GET /nothing HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    statuses = [int(part.split()[0]) for part in rest_of(connected).split(b"HTTP/1.1 ")[1:]]
    assert statuses == [200, 200, 404]


def test_too_long_a_pipeline_ends_its_connection(served: Edge) -> None:
    connected = served.connect()
    connected.sendall(post("held") + GET * (MAX_PIPELINED + 1))
    assert status_of(connected) is None
    assert served.ended(Ended.PIPELINE) == 1
    # Nobody gets the answer that is made, if it is begun at all.
    served.until(lambda: len(served.engine.cancelled) == len(served.engine.submitted))


def test_requests_behind_one_that_is_answered_stay_outside(served: Edge) -> None:
    """Whoever waits for a hang-up reads on, which used to let in the next ones."""
    connected = served.connect()
    connected.sendall(post("held", stream=True) + GET)
    assert status_of(connected) == 200
    connected.setblocking(False)
    sent = 0
    try:
        for _ in range(1000):
            sent += connected.send(GET * 1000)
    except BlockingIOError:
        pass
    else:
        pytest.fail(f"{sent} bytes of requests were taken in, behind one that is not answered")


DOUBTFUL = {
    "two Hosts": b"Host: localhost\r\nHost: evil.example\r\nContent-Length: 0\r\n\r\n",
    "no Host": b"Content-Length: 0\r\n\r\n",
    "two lengths": b"Host: localhost\r\nContent-Length: 0\r\nContent-Length: 0\r\n\r\n",
    "length and encoding": b"Host: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "an encoding that is none": b"Host: localhost\r\nTransfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    "a folded header": b"Host: localhost\r\nx-a: b\r\n c\r\nContent-Length: 0\r\n\r\n",
    "a space before the colon": b"Host: localhost\r\nContent-Length : 0\r\n\r\n",
    "bare line feeds": b"Host: localhost\nContent-Length: 0\n\n",
    "a body for another protocol": b"Host: localhost\r\nConnection: upgrade\r\nUpgrade: h2c\r\n"
    b"Content-Length: 5\r\n\r\nGET /",
}


@pytest.mark.parametrize("name", DOUBTFUL)
def test_what_two_programs_may_read_in_two_ways_is_refused(served: Edge, name: str) -> None:
    connected = served.connect()
    connected.sendall(b"POST /ping HTTP/1.1\r\n" + DOUBTFUL[name])
    assert status_of(connected) == 400
    assert b'"code": "malformed_request"' in rest_of(connected), "and the connection ends"


def test_the_same_without_what_is_doubtful_is_answered(served: Edge) -> None:
    connected = served.connect()
    connected.sendall(b"POST /ping HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n")
    assert status_of(connected) == 200


def test_another_protocol_may_be_asked_for_and_is_not_spoken(served: Edge) -> None:
    connected = served.connect()
    asking = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    connected.sendall(asking)
    assert status_of(connected) == 200


def test_old_http_needs_no_host(served: Edge) -> None:
    connected = served.connect()
    connected.sendall(b"OPTIONS /health HTTP/1.0\r\n\r\n")
    assert status_of(connected) == 405
