"""What only the process shows: its descriptors, its log, and how it ends."""

import errno
import logging
import os
import re
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import uvloop

from benchmarks.serving import ROOT, await_address, in_banner
from server.app import create_app
from server.config import ServerConfig
from server.edge.connections import Bounds, Connections
from server.edge.serving import DescriptorWatch, fit_descriptors, make_server
from server.engines.scripted.engine import ScriptedEngine
from server.errors import ConfigError
from tests.server.edge.serving import POST, TIMEOUT_SECONDS, post, rest_of, status_of

DESCRIPTORS = 300


@contextmanager
def served(log: Path, *flags: str) -> Iterator[tuple["subprocess.Popen[str]", tuple[str, int]]]:
    """The process under few descriptors, of which it is given fewer still, and its address."""
    command = [sys.executable, "-m", "tests.server.edge.process", *flags]
    with log.open("w") as errors:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS // 2, DESCRIPTORS)),
        )
        assert process.stdout is not None
        try:
            host, _, port = await_address(process, in_banner).removeprefix("http://").partition(":")
            yield process, (host, int(port))
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


def connect(address: tuple[str, int], source: str, receive_buffer: int = 0) -> socket.socket:
    connected = socket.socket()
    if receive_buffer:
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connected.settimeout(TIMEOUT_SECONDS)
    connected.bind((source, 0))
    connected.connect(address)
    return connected


def test_the_process_stands_its_limits_and_ends_when_told(tmp_path: Path) -> None:
    with ExitStack() as stack, served(tmp_path / "log", "--stop-timeout-seconds", "1") as (process, address):

        def opened(source: str, receive_buffer: int = 0) -> socket.socket:
            return stack.enter_context(connect(address, source, receive_buffer))

        # More connections than descriptors disturb nobody.
        for _ in range(2 * DESCRIPTORS):
            opened("127.0.0.3")
        behaved = opened("127.0.0.2")
        behaved.sendall(post("hi"))
        assert status_of(behaved) == 200

        # Of what runs when it is told to end, the answers that are read end by themselves.
        running, unread, trickling = opened("127.0.0.2"), opened("127.0.0.4", 2048), opened("127.0.0.5")
        unread.sendall(post("long"))
        assert status_of(unread) == 200
        trickling.sendall(POST + b"Content-Length: 1000\r\n\r\n{")
        running.sendall(post("held", stream=True))
        assert status_of(running) == 200
        process.send_signal(signal.SIGTERM)
        _until_refused(address)
        process.send_signal(signal.SIGUSR1)
        assert b"data: [DONE]" in rest_of(running)
        assert process.wait(TIMEOUT_SECONDS) == 0
        assert len(rest_of(unread)) < 8_000_000
        assert rest_of(trickling) == b""
    log = (tmp_path / "log").read_text()
    assert "Traceback" not in log
    assert f"the process may have {DESCRIPTORS} descriptors, so there are at most 150 connections" in log
    assert len(log) < 20_000, "an attack fills the disk"


def test_what_was_loaded_is_not_looked_through_for_garbage(tmp_path: Path) -> None:
    with served(tmp_path / "log") as (process, _):
        process.send_signal(signal.SIGUSR2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(TIMEOUT_SECONDS) == 0
    found = re.search(r"settled (\d+), others (\d+)", (tmp_path / "log").read_text())
    assert found is not None
    settled, others = map(int, found.groups())
    assert settled > 10 * others


def _until_refused(address: tuple[str, int]) -> None:
    """Waits for an answer each time: a flood of connections would hold up what is told to end."""
    while True:
        try:
            with socket.create_connection(address, TIMEOUT_SECONDS) as connected:
                connected.sendall(b"\0")
                while connected.recv(4096):
                    pass
        except ConnectionError:
            return


def test_a_process_that_hangs_is_ended() -> None:
    code = (
        "import threading, server.cli.serve as serve\n"
        "serve._end_within(0.05)\n"
        "threading.Thread(target=threading.Event().wait).start()"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE, text=True, check=False)
    assert (ended.returncode, "did not stop within 0.05 seconds" in ended.stderr) == (1, True)


def test_a_port_that_is_taken_is_said_with_what_to_do() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        config = ServerConfig(port=taken.getsockname()[1])
        server = make_server(create_app(ScriptedEngine(), config), config)
        with pytest.raises(ConfigError, match=f"port {config.port}: address already in use; .* another `host`"):
            uvloop.run(server.serve())


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The process's limits, of which the last is in force, without touching them."""
    made = [(1024, 1_048_576)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: made[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: made.append(limits))
    return made


@pytest.mark.parametrize(
    ("soft", "hard", "raised", "most"),
    [
        (1024, 1_048_576, 4352, 4096),
        (1024, resource.RLIM_INFINITY, 4352, 4096),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, None, 4096),
        (10_000, 20_000, None, 4096),
        (1024, 1024, None, 768),
        (256, 512, 512, 256),
        (100, 100, None, 50),
    ],
)
def test_descriptors_are_enough_or_connections_are_fewer(
    limits: list[tuple[int, int]], soft: int, hard: int, raised: int | None, most: int
) -> None:
    limits.append((soft, hard))
    table = Connections(Bounds(4096, 512, (), 1, 1, 1))
    fit_descriptors(table)
    assert table.bounds.most == most
    assert limits[-1] == (soft if raised is None else raised, hard)


def test_a_lack_of_descriptors_is_said_once_a_minute(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    watch = DescriptorWatch(clock=lambda: now[0])
    watch.look()
    assert caplog.records == [], "positive control: there are some"

    def none_left(*_: object) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", none_left)
        for _ in range(2):
            for _ in range(30):
                watch.look()
            now[0] += 61
    assert [record.levelno for record in caplog.records] == [logging.ERROR, logging.ERROR]
    assert "Too many open files" in caplog.text
