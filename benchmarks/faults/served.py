"""A server's process that may be hurt: its address, what it printed, and how it ended."""

import resource
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.serving import ROOT, ServerDidNotStartError, await_address, drain, in_banner

STOP_SECONDS = 60.0
"""How long a stop may take before it counts as a hang."""


@dataclass(frozen=True)
class Served:
    """A running server."""

    url: str
    process: "subprocess.Popen[str]"
    log: Path
    """What it wrote to standard error."""

    def family(self) -> list[psutil.Process]:
        """Its process and all below it."""
        parent = psutil.Process(self.process.pid)
        return [parent, *parent.children(recursive=True)]

    def signal(self, number: int) -> None:
        """Sends a signal to the server's own process."""
        self.process.send_signal(number)

    def stop(self) -> int | None:
        """Its exit status after SIGTERM; None where it had to be killed."""
        self.signal(signal.SIGTERM)
        return self.ended()

    def ended(self, seconds: float = STOP_SECONDS) -> int | None:
        """Its exit status once it ended by itself; None where it did not in that time."""
        try:
            return self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            return None


@contextmanager
def serve(
    *arguments: str,
    program: Sequence[str] = ("server.cli",),
    environment: Mapping[str, str] | None = None,
    largest_file: int | None = None,
) -> Iterator[Served]:
    """Starts `skillguard serve` on a free port; yields once its guards are verified, and leaves no process behind.

    `program`: the module that takes the command's words, with words of its own. `largest_file`: bytes that a file of
    its may have (RLIMIT_FSIZE), beyond which the system says EFBIG. Raises ServerDidNotStartError.
    """
    command = [sys.executable, "-m", *program, "serve", "--port", "0", *arguments]

    def limited() -> None:
        if largest_file is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # as Python itself sets it: a write then fails by EFBIG
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))

    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("w", encoding="utf-8") as errors:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=None if environment is None else dict(environment),
                preexec_fn=limited,
            )
        try:
            try:
                url = await_address(process, in_banner)
            except ServerDidNotStartError as error:
                raise ServerDidNotStartError(f"{error}: {log.read_text(encoding='utf-8')[-2000:]}") from error
            threading.Thread(target=drain, args=(process,), daemon=True).start()
            yield Served(url, process, log)
        finally:
            end(process)


def end(process: "subprocess.Popen[str]") -> None:
    """Ends a process and all below it, however it is."""
    try:
        family = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        family = []
    process.terminate()
    try:
        process.wait(timeout=STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for each in family:
        if each.is_running():
            each.kill()
    assert process.stdout is not None
    process.stdout.close()
