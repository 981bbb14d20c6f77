"""A server's process, for benchmarks and end-to-end tests: what users run, asked over HTTP as users do."""

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_READY = "  ready  "
_NOT_READY = "  NOT READY"
_DRAIN_SECONDS = 30


class ServerDidNotStartError(RuntimeError):
    """The process ended, or came up without being ready; the message holds what it printed."""


@contextmanager
def running_server(*arguments: str) -> Iterator[str]:
    """Starts `skillguard serve` on a free port and yields its address once its guards are verified."""
    with running([sys.executable, "-m", "server.cli", "serve", "--port", "0", *arguments], in_banner) as url:
        yield url


@contextmanager
def running(command: Sequence[str], address_in: Callable[[str], str | None]) -> Iterator[str]:
    """Starts a server and yields its address, which `address_in` finds in a line that it prints: None where it is not
    there yet, "" where the server will not be ready. The line is the event; nothing is polled.

    Raises ServerDidNotStartError.
    """
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    reader = threading.Thread(target=drain, args=(process,), daemon=True)
    try:
        url = await_address(process, address_in)
        reader.start()
        yield url
    finally:
        if reader.ident is None:
            reader.start()
        process.terminate()
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        reader.join(_DRAIN_SECONDS)  # not for ever: a process that it left behind may hold the pipe


def drain(process: "subprocess.Popen[str]") -> None:
    """Reads on until the process ends: what it logs must be read, or the full pipe would stop it."""
    assert process.stdout is not None
    with process.stdout:
        for _ in process.stdout:
            pass


def in_banner(line: str) -> str | None:
    """The address in a line of `skillguard serve`; "" where it says that it is not ready."""
    if line.startswith(_NOT_READY):
        return ""
    return line.removeprefix(_READY).split()[0].removesuffix("/v1") if line.startswith(_READY) else None


def await_address(process: "subprocess.Popen[str]", address_in: Callable[[str], str | None]) -> str:
    """The address in the first line that has one. Raises ServerDidNotStartError."""
    assert process.stdout is not None
    printed = []
    for line in process.stdout:
        printed.append(line)
        found = address_in(line)
        if found:
            return found
        if found is not None:
            break
    raise ServerDidNotStartError("".join(printed) or f"exit status {process.wait()}")
