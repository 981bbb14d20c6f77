"""How many connections there may be and how long each may wait, over real sockets."""

import asyncio
import logging
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pytest

from server.config import ServerConfig
from server.edge.connections import MAX_ABANDONED, Bounds, Connections, Ended, Phase
from tests.server.edge.serving import GET, POST, TIMEOUT_SECONDS, Edge, edge, post, rest_of, status_of


@pytest.fixture(scope="module")
def _served() -> Iterator[Edge]:
    with edge(trusted_proxies=["127.0.0.9", "127.1.0.0/16"]) as served:
        yield served


# Deadlines


def test_who_says_nothing_is_let_go(served: Edge) -> None:
    connected = served.connect()
    served.later(served.usual.header_timeout - 1)
    assert served.ended(Ended.HEADER_TIMEOUT) == 0
    served.later(2)
    assert rest_of(connected) == b""
    assert served.ended(Ended.HEADER_TIMEOUT) == 1


def test_headers_that_trickle_are_a_408(served: Edge) -> None:
    connected = served.connect()
    connected.sendall(b"GET /health HTTP/1.1\r\n")
    served.later(served.usual.header_timeout - 1)
    connected.sendall(b"x-more: trickles\r\n")
    served.later(2)
    assert status_of(connected) == 408
    assert b'"code": "request_timeout"' in rest_of(connected)


def test_a_body_that_trickles_is_a_408(served: Edge) -> None:
    connected = served.connect()
    connected.sendall(POST + b"Content-Length: 1000\r\n\r\n{")
    served.later(served.usual.body_timeout - 1)
    connected.sendall(b"{")
    served.later(2)
    assert status_of(connected) == 408
    rest_of(connected)
    assert served.ended(Ended.BODY_TIMEOUT) == 1


def test_a_body_that_trickles_after_its_answer_is_let_go(served: Edge) -> None:
    connected = served.connect()
    connected.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999\r\n\r\n{")
    assert status_of(connected) == 413
    rest_of(connected)
    connected = served.connect()
    connected.sendall(
        b"POST /nothing HTTP/1.1\r\nHost: localhost\r\nContent-Encoding: gzip\r\nContent-Length: 9\r\n\r\n{"
    )
    assert status_of(connected) == 415
    served.later(served.usual.body_timeout - 1)
    connected.sendall(b"{")
    served.later(2)
    assert rest_of(connected).endswith(b"}}"), "the one answer, and no other behind it"
    assert served.ended(Ended.BODY_TIMEOUT) == 1


def test_an_answer_may_take_as_long_as_it_takes(served: Edge) -> None:
    connected = served.connect()
    connected.sendall(post("held") + b"GET /hea")
    served.later(10_000)
    served.call(served.held.set)
    assert status_of(connected) == 200
    served.later(served.usual.header_timeout + 1)  # from the end of the answer on
    assert b"408 Request Timeout" in rest_of(connected)


def test_who_reads_nothing_is_cut(served: Edge) -> None:
    connected = served.connect(receive_buffer=2048)
    connected.sendall(post("long"))
    assert status_of(connected) == 200
    served.later(served.usual.send_timeout - 1)
    assert served.ended(Ended.SEND_TIMEOUT) == 0
    served.later(2)
    assert served.ended(Ended.SEND_TIMEOUT) == 1
    assert len(rest_of(connected)) < 4_000_000


def test_who_reads_slowly_is_not(served: Edge) -> None:
    connected = served.connect(receive_buffer=65_536)  # so that the server has to send while it reads
    connected.sendall(post("long"))
    assert status_of(connected) == 200
    for _ in range(7):
        left = 500_000
        while left:
            left -= len(connected.recv(left))
        served.later(served.usual.send_timeout - 1)
    assert served.ended(Ended.SEND_TIMEOUT) == 0


def test_of_one_that_is_gone_nothing_is_unread(served: Edge) -> None:
    connected = served.connect()
    (connection,) = served.table._sources
    connected.close()
    while served.call(lambda: len(served.table)):
        pass
    assert served.call(connection.unread_now) == 0


# Numbers


def test_one_address_may_have_so_many_and_others_go_on(served: Edge) -> None:
    served.bounded(most_of_an_address=4)
    running = [served.connect() for _ in range(4)]
    for connected in running:
        connected.sendall(post("held"))
    served.settled()
    assert status_of(served.connect()) == 429
    assert served.ended(Ended.ADDRESS_FULL) == 1
    other = served.connect("127.0.0.2")
    other.sendall(GET)
    assert status_of(other) == 200
    served.call(served.held.set)
    assert [status_of(connected) for connected in running] == [200] * 4


def test_whoever_waits_longest_makes_room(served: Edge) -> None:
    served.bounded(most_of_an_address=3)
    kept, trickling, silent = served.connect(), served.connect(), served.connect()
    kept.sendall(GET)
    assert status_of(kept) == 200
    kept.recv(1000)
    trickling.sendall(POST + b"Content-Length: 1000\r\n\r\n{")
    served.later(1)
    fourth = served.connect()
    assert rest_of(silent) == b"", "it never asked for anything"
    fourth.sendall(post("held"))
    served.settled()
    fifth = served.connect()
    assert rest_of(trickling) == b""
    fifth.sendall(post("held"))
    served.settled()
    sixth = served.connect()
    assert rest_of(kept) == b"", "it goes last"
    sixth.sendall(GET)
    assert status_of(sixth) == 200
    assert served.ended(Ended.REPLACED) == 3


def test_all_together_may_be_so_many(served: Edge) -> None:
    served.bounded(most=3)
    running = [served.connect(f"127.0.0.{index}") for index in range(2, 5)]
    for connected in running:
        connected.sendall(post("held"))
    served.settled()
    assert status_of(served.connect("127.0.0.5")) == 429
    assert served.ended(Ended.FULL) == 1


@pytest.mark.parametrize("address", ["127.0.0.9", "127.1.2.3"])
def test_a_trusted_proxy_has_many_peoples_connections(served: Edge, address: str) -> None:
    served.bounded(most_of_an_address=1)
    running = [served.connect(address) for _ in range(3)]
    for connected in running:
        connected.sendall(GET)
    assert [status_of(connected) for connected in running] == [200] * 3


def test_what_a_caller_says_of_its_address_counts_for_nothing(served: Edge) -> None:
    served.bounded(most_of_an_address=2)
    said = (
        b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-For: 127.1.0.%d\r\nForwarded: for=127.0.0.9\r\n\r\n"
    )
    running = [served.connect() for _ in range(2)]
    for index, connected in enumerate(running):
        connected.sendall(said % index)
        assert status_of(connected) == 200
        connected.recv(10_000)
        connected.sendall(post("held"))
    served.settled()
    assert status_of(served.connect()) == 429


def leave(served: Edge, leaving: Sequence[socket.socket], last: bytes = b"") -> None:
    """Each sends a request, and hangs up once that waits for its answer."""
    before = len(served.engine.submitted)
    for count, connected in enumerate(leaving, start=1):
        connected.sendall(post("held"))
        served.until(lambda: len(served.engine.submitted) >= before + count)  # noqa: B023
    for connected in leaving:
        connected.sendall(last)
        connected.close()
    served.until(lambda: not len(served.table))


@pytest.mark.parametrize("last", [b"", b"\0"], ids=["", "after a byte that is not HTTP"])
def test_who_leaves_request_after_request_has_to_wait(served: Edge, last: bytes) -> None:
    leave(served, [served.connect() for _ in range(MAX_ABANDONED - 1)], last)
    one_more = served.connect()
    one_more.sendall(post("hi"))
    assert status_of(one_more) == 200
    one_more.close()
    served.until(lambda: not len(served.table))
    leave(served, [served.connect()], last)
    refused = served.connect()
    refused.sendall(post("hi"))
    assert status_of(refused) == 429
    assert b"left too many requests before their answers began" in rest_of(refused)
    probe = served.connect()
    probe.sendall(GET)
    assert status_of(probe) == 200
    other = served.connect("127.0.0.2")
    other.sendall(post("hi"))
    assert status_of(other) == 200
    served.later(1)
    again = served.connect()
    again.sendall(post("hi"))
    assert status_of(again) == 200
    assert served.ended(Ended.HANG_UPS) == 1


def test_who_connected_before_has_to_wait_too(served: Edge) -> None:
    before = served.connect()
    for _ in range(MAX_ABANDONED):
        served.call(lambda: served.table.abandoned(next(iter(served.table._sources))))
    before.sendall(post("hi"))
    assert status_of(before) == 429


def test_a_body_counts_under_any_method(served: Edge) -> None:
    for _ in range(MAX_ABANDONED):
        leaving = served.connect()
        leaving.sendall(POST.replace(b"POST", b"PUT") + b"Content-Length: 1000\r\n\r\n{")
        served.settled()
        leaving.close()
        served.until(lambda: not len(served.table))
    refused = served.connect()
    refused.sendall(post("hi"))
    assert status_of(refused) == 429


def test_many_that_are_left_at_once_are_forgiven_as_slowly(served: Edge) -> None:
    leave(served, [served.connect() for _ in range(3 * MAX_ABANDONED)])
    for seconds, status in [(1, 429), (0.9, 429), (0.2, 200)]:
        served.later(seconds)
        asked = served.connect()
        asked.sendall(post("hi"))
        assert status_of(asked) == status


def test_whom_the_server_ends_need_not_wait(served: Edge) -> None:
    for _ in range(2):
        held = [served.connect() for _ in range(MAX_ABANDONED)]
        for connected in held:
            connected.sendall(post("held"))
        served.settled()
        served.call(served.table.end_all)
        for connected in held:
            rest_of(connected)
        served.until(lambda: not len(served.table))
    after = served.connect()
    after.sendall(post("hi"))
    assert status_of(after) == 200


def test_who_leaves_what_has_begun_need_not_wait(served: Edge) -> None:
    for _ in range(MAX_ABANDONED):
        leaving = served.connect()
        leaving.sendall(post("held", stream=True))
        assert status_of(leaving) == 200
        leaving.close()
        served.until(lambda: not len(served.table))
    after = served.connect()
    after.sendall(post("hi"))
    assert status_of(after) == 200


def test_a_thousand_that_say_nothing_disturb_nobody(served: Edge) -> None:
    served.bounded(most=64, most_of_an_address=48)
    for _ in range(300):
        served.connect()
    for source in ("127.0.0.2", "127.0.0.1"):
        behaved = served.connect(source)
        behaved.sendall(post("hi"))
        assert status_of(behaved) == 200
    assert served.call(lambda: len(served.table)) <= 64


def test_a_stop_ends_whatever_is_left(served: Edge) -> None:
    connected = served.connect()
    connected.sendall(post("held"))
    served.until(lambda: served.engine.submitted)
    served.call(served.table.end_all)
    assert rest_of(connected) == b""
    served.until(lambda: served.engine.cancelled)
    assert len(served.engine.cancelled) == 1


def test_metrics_tell_why(served: Edge) -> None:
    silent = served.connect()
    served.later(served.usual.header_timeout + 1)
    rest_of(silent)
    connected = served.connect()
    connected.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    text = rest_of(connected).decode()
    assert "\nskillguard_connections 1.0\n" in text
    assert 'skillguard_connections_ended_total{why="header_timeout"} 0.0' not in text
    assert 'skillguard_connections_ended_total{why="stopped"}' in text


# The table by itself


@dataclass(eq=False)
class Made:
    """A connection that only the table knows."""

    phase: Phase = Phase.HEAD
    since: float = 0
    unread: int = 0
    unread_since: float | None = None
    why: Ended | None = None

    def unread_now(self) -> int:
        return self.unread

    def end(self, why: Ended) -> None:
        self.why = why


async def _sources(addresses: list[str], **settings: object) -> list[Ended | None]:
    bounds = Bounds.of(ServerConfig.model_validate({"max_connections_per_address": 1, **settings}))
    table = Connections(bounds, clock=lambda: 0.0)
    return [table.add(Made(Phase.ANSWER), address) for address in addresses]


@pytest.mark.parametrize(
    ("addresses", "one"),
    [
        (("10.0.0.1", "10.0.0.2"), False),
        (("2001:db8::1", "2001:db8::2:3"), True),
        (("2001:db8::1", "2001:db8:0:1::1"), False),
        (("::ffff:10.0.0.1", "10.0.0.1"), True),
        (("fe80::1%eth0", "fe80::1%eth0"), True),
    ],
)
def test_whose_connections_are_counted_together(addresses: tuple[str, str], one: bool) -> None:
    assert asyncio.run(_sources([*addresses])) == [None, Ended.ADDRESS_FULL if one else None]


def test_a_proxy_is_trusted_by_its_network() -> None:
    trusted = ["fd00::1", "fd00::1", "::ffff:10.1.2.3", "10.1.2.4"]
    assert asyncio.run(_sources(trusted, trusted_proxies=["fd00::/8", "10.1.0.0/16"])) == [None] * 4


def test_an_attack_is_a_line_a_minute_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    now = [1000.0]
    table = Connections(Bounds.of(ServerConfig()), clock=lambda: now[0])
    for _ in range(100):
        for _ in range(10):
            table.count(Ended.MALFORMED)
        table.sweep()
        now[0] += 1
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert lines == [
        "connections ended by the server: malformed 10; 0 are open",
        "connections ended by the server: malformed 600; 0 are open",
    ]


def test_nothing_is_looked_at_while_there_is_nothing() -> None:
    async def run() -> None:
        table = Connections(Bounds.of(ServerConfig()))
        made = Made()
        table.add(made, "10.0.0.1")
        table.remove(made)
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while table._tick is not None:
                await asyncio.sleep(0)

    asyncio.run(run())
