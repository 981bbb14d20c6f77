"""Runs a program that a model wrote, in a cage: a failing, endless or greedy one costs its own process and no more.

Always: an own session and process group that is killed as a whole, an empty working directory, limits on CPU time,
memory, file size, open files and processes (none beside itself), a wall clock, capped output, `python -I`, and an
environment without our variables. Where the kernel permits new namespaces (Linux, as root or with unprivileged user
namespaces): no network, no sight of other processes, and every file read-only. `probe` says which of those hold, and an
evaluation records it. This is against accidents of generated code; hostile code belongs into a virtual machine.
"""

import json
import os
import secrets
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from server.errors import EvaluationError

LAUNCHER = Path(__file__).with_name("launch.py")
PASSED_STATUS = 73
"""The exit status that only the program's last line gives: `exit(0)` in the middle is no success."""
_LAST_LINE = f"\n\n__import__('sys').stdout.flush(); __import__('os')._exit({PASSED_STATUS})\n"
_FIRST_UID, _UIDS = 1_600_000_000, 500_000_000
"""Where we are root, each program runs as a user id of its own, far from any that somebody has."""


class Outcome(StrEnum):
    """How a program ended."""

    PASSED = "passed"
    FAILED = "failed"
    TIMEOUT = "timeout"
    KILLED = "killed"
    """By the limit on CPU time, by a machine short of memory, or by itself."""
    OUTPUT = "output"
    """It wrote more than the cap and was killed."""


@dataclass(frozen=True)
class Limits:
    """What one program may use. MBPP's solutions need a hundredth of it."""

    wall_seconds: float = 10.0
    cpu_seconds: int = 8
    memory_bytes: int = 1 << 30
    """Address space, of which the interpreter itself takes some 20 MiB."""
    file_bytes: int = 1 << 20
    output_bytes: int = 1 << 16


@dataclass(frozen=True)
class Ran:
    """One run. `status`: the exit status, 128 + n where signal n ended it. `output`: the capped output."""

    outcome: Outcome
    status: int
    output: str


@dataclass(frozen=True)
class Isolation:
    """What this machine permits beyond the limits."""

    network: bool
    """Whether programs can reach a network."""
    files: bool
    """Whether they can write outside their working directory where their user may."""


def run_program(code: str, limits: Limits | None = None) -> Ran:
    """Runs Python code and says whether it came to its end. Blocks; call it from a thread."""
    limits = limits or Limits()
    uid = _FIRST_UID + secrets.randbelow(_UIDS) if os.geteuid() == 0 else None
    with tempfile.TemporaryDirectory(prefix="skillguard-run-", ignore_cleanup_errors=True) as folder:
        program, work = Path(folder, "program.py"), Path(folder, "work")
        program.write_bytes((code + _LAST_LINE).encode(errors="replace"))
        work.mkdir()
        if uid is not None:
            os.chmod(folder, 0o711)
            os.chown(work, uid, uid)
        # A virtual environment may lie in a folder of root's own, and so may what it was made of.
        search = any(_hidden(Path(prefix)) for prefix in (sys.prefix, sys.base_prefix))
        plan = {"work": str(work), "uid": uid, "search": search, "limits": _resources(limits)}
        process = subprocess.Popen(
            [sys.executable, "-I", str(LAUNCHER), json.dumps(plan), str(program)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env={"PATH": os.defpath, "LANG": "C.UTF-8"},
            start_new_session=True,
        )
        try:
            cut, output = _read(process, limits)
        finally:
            _end(process)
    status = process.returncode if process.returncode >= 0 else 128 - process.returncode
    text = output.decode(errors="replace")
    if cut is not None:
        return Ran(cut, status, text)
    if status == 128 + signal.SIGKILL:
        return Ran(Outcome.KILLED, status, text)
    return Ran(Outcome.PASSED if status == PASSED_STATUS else Outcome.FAILED, status, text)


def _resources(limits: Limits) -> dict[str, int]:
    return {
        "RLIMIT_CPU": limits.cpu_seconds,
        "RLIMIT_AS": limits.memory_bytes,
        "RLIMIT_FSIZE": limits.file_bytes,
        "RLIMIT_CORE": 0,
        "RLIMIT_NOFILE": 64,
        "RLIMIT_NPROC": 0,
    }


def _hidden(folder: Path) -> bool:
    """Whether other users cannot reach a folder."""
    return any(not at.stat().st_mode & 0o001 for at in (folder.resolve(), *folder.resolve().parents))


def _read(process: "subprocess.Popen[bytes]", limits: Limits) -> tuple[Outcome | None, bytes]:
    """Output up to the cap, and why reading ended early, None where the program closed its output itself."""
    assert process.stdout is not None
    deadline = time.monotonic() + limits.wall_seconds
    output = bytearray()
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while (left := deadline - time.monotonic()) > 0:
            if not selector.select(left):
                break
            piece = os.read(process.stdout.fileno(), 1 << 14)
            if not piece:
                return _await_exit(process, deadline), bytes(output)
            output += piece
            if len(output) > limits.output_bytes:
                return Outcome.OUTPUT, bytes(output[: limits.output_bytes])
    return Outcome.TIMEOUT, bytes(output)


def _await_exit(process: "subprocess.Popen[bytes]", deadline: float) -> Outcome | None:
    """A program may close its output and go on."""
    try:
        process.wait(timeout=max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return Outcome.TIMEOUT
    return None


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Kills whatever is left of the group, and reaps its leader."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


_PROBE = """\
import os, tempfile
def differs(name):
    try:
        return os.readlink("/proc/self/ns/" + name) != {namespaces!r}[name]
    except OSError:
        return False
def writable(folder):
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False
open("here", "w").close()
print(int(differs("net")), int(not writable({folder!r})))
"""


def probe() -> Isolation:
    """What the cage keeps in on this machine, by trying. Raises EvaluationError where nothing runs in it at all."""
    namespaces = {"net": os.readlink("/proc/self/ns/net") if Path("/proc/self/ns/net").exists() else ""}
    with tempfile.TemporaryDirectory(prefix="skillguard-probe-") as folder:
        os.chmod(folder, 0o777)  # writable for anybody, so that only the cage can be what forbids it
        ran = run_program(_PROBE.format(namespaces=namespaces, folder=folder))
    if ran.outcome is not Outcome.PASSED:
        raise EvaluationError(
            f"the sandbox for generated code cannot run {sys.executable}: got {ran.outcome} (status {ran.status}) "
            f"{ran.output[-300:]!r}, wanted a trivial program to pass; evaluate as an ordinary user, on Linux or macOS"
        )
    no_network, no_files = ran.output.split()
    return Isolation(network=no_network == "0", files=no_files == "0")
