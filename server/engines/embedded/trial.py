"""A grammar is compiled in a process of its own first, where it may take only so much.

llguidance counts its work where it follows a pattern, but not everywhere: an array of 100,000,000 items takes all
memory there is, an `allOf` of 50 patterns does not come to an end, and nothing stops a compilation that has begun.

The server starts one process, which reads the tokenizer and takes sockets. For each it forks a keeper, and that a
worker: the worker reads the grammar, compiles it and answers; where it cannot, the keeper says how it ended. So what
one grammar does is gone with its worker, and no answer can be taken for another's.
"""

import json
import logging
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from copy import copy
from functools import partial
from typing import Any, NoReturn

from server.engines.embedded.dialects import to_llguidance
from server.engines.errors import EngineBusyError, EngineError, EngineStoppedError, InvalidOptionError
from server.engines.request import Grammar, GrammarKind

logger = logging.getLogger("skillguard.server")

SECONDS = 1.0
"""Of a processor. Schemas of clients take some hundredths; 64 KiB of ranges of numbers took 0.4."""
MEGABYTES = 32
"""Beyond what the process has. Schemas of clients take 10 at most; what is let through here keeps half of it."""
MAX_WORK_SECONDS = 20
"""On the clock: on a machine that does other things, a second of a processor takes longer."""
MAX_WAIT_SECONDS = 30.0
"""For an answer, after which the process is not waited for, but ended."""
MAX_START_SECONDS = 300.0
_MAX_END_SECONDS = 0.2
"""For the kernel to say that a process has ended which answers nothing."""
NICE = 10
"""Of the process once it is ready: who sends what takes its whole second again and again hardly slows down forward
passes, beside which a tenth of a processor is left to it.
"""
_READY = b"."
_NO_MEMORY = 3
"""The worker's exit status where Python had none left. Rust ends the process then, as a stack does that overflows."""
_MEMORY = (_NO_MEMORY, -signal.SIGABRT, -signal.SIGSEGV)
_Running = tuple[subprocess.Popen[bytes], socket.socket]


class Trial:
    """Compiles for one tokenizer. Safe to call from several threads, none of which waits for another's grammar."""

    def __init__(self, tokenizer: str, vocabulary: int, stop_ids: Sequence[int]) -> None:
        """`tokenizer`: what `plain_tokenizer` gives."""
        self._given = json.dumps([tokenizer, vocabulary, list(stop_ids)]).encode() + b"\n"
        self._lock = threading.Lock()
        self._running: list[_Running] = []
        """One, or none."""
        self._closed = False
        weakref.finalize(self, _end_all, self._running)

    def close(self) -> None:
        """Ends the process, now or once it has started: nothing is tried any more."""
        self._closed = True
        _end_all(self._running)

    def text(self, grammar: Grammar, limits: Mapping[str, object]) -> str:
        """llguidance's own form of a grammar that compiles within the bounds, and under these limits of its parser.

        Raises ValueError with what llguidance has against it, InvalidOptionError where it takes too much to find out,
        EngineBusyError where a second of a processor takes too long, EngineStoppedError once it is closed, and
        EngineError where no process can be had or nothing is said.
        """
        asked = [grammar.kind.value, grammar.text, dict(limits), SECONDS, MEGABYTES]
        found = self._try(asked)
        if found is None:
            found = self._try(asked) or {}
        if "text" in found:
            return str(found["text"])
        if "said" in found:
            raise ValueError(found["said"])
        if self._closed:
            raise EngineStoppedError("the engine has stopped")
        status = found.get("status")
        if status == -signal.SIGALRM:
            raise EngineBusyError(f"the grammar did not get {SECONDS:g} seconds of a processor soon enough: try again")
        if status != -signal.SIGPROF and status not in _MEMORY:
            logger.error("a process that tried a grammar gave no answer; it ended with status %s", status)
            raise EngineError("the process that tries grammars gave no answer; ask again")
        spent = f"{MEGABYTES} MiB of memory" if status in _MEMORY else f"{SECONDS:g} seconds of a processor"
        raise InvalidOptionError(
            f"the grammar takes more to compile than the {spent} that it may; let it repeat, count and combine less",
            "grammar",
        )

    def _try(self, asked: Sequence[object]) -> dict[str, Any] | None:
        """What is said, nothing where no answer came. None where the process ended, as where memory is short: what it
        was handed last, it never took up.
        """
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                try:
                    by = self._hand(theirs)
                except OSError:  # its own end is closed, and the kernel does not yet say that it has ended
                    return None
            ours.settimeout(MAX_WAIT_SECONDS)
            try:
                found = _answer(ours, asked)
            except TimeoutError:  # not even a worker's own clock ended it
                _end_all(self._running)
                return {}
        return found if found or not _ends(by) else None

    def _hand(self, theirs: socket.socket) -> "subprocess.Popen[bytes]":
        """To the process that runs, or to one that is started for it. Raises OSError where it takes nothing."""
        with self._lock:
            running = self._running[0] if self._running else None
            if running is not None and running[0].poll() is not None:
                _end_all(self._running)
                running = None
            if running is None and not self._closed:
                running = _started(self._given)
                self._running.append(running)
            if running is None or self._closed:
                _end_all(self._running)
                raise EngineStoppedError("the engine has stopped")
            try:
                socket.send_fds(running[1], [_READY], [theirs.fileno()])
            except OSError:
                _end_all(self._running)
                raise
            return running[0]


def plain_tokenizer(tokenizer: Any) -> str:
    """As tokenizer.json has it, with all of its tokens and for texts of any length."""
    backend = copy(tokenizer.backend_tokenizer)
    backend.no_padding()
    backend.no_truncation()
    return str(backend.to_str())


def _answer(ours: socket.socket, asked: Sequence[object]) -> dict[str, Any]:
    """Empty where there is none, or no whole one. Raises TimeoutError where a part of it does not come."""
    try:
        ours.sendall(json.dumps(asked).encode())
        ours.shutdown(socket.SHUT_WR)
        return dict(json.loads(_all_of(ours)))
    except TimeoutError:
        raise
    except (OSError, ValueError):
        return {}


def _all_of(connected: socket.socket) -> bytes:
    return b"".join(iter(lambda: connected.recv(1 << 16), b""))


def _started(given: bytes) -> _Running:
    """A process that has read the tokenizer. Raises EngineError where there is none to be had."""
    control, theirs = socket.socketpair()
    where = os.pathsep.join(each or os.getcwd() for each in sys.path)
    with theirs:
        try:
            process = subprocess.Popen(
                # -P: python -c would look in the working directory first, where anybody may have put a module
                [sys.executable, "-P", "-c", f"from {__name__} import serve; serve({theirs.fileno()})"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env={**os.environ, "PYTHONPATH": where},
                start_new_session=True,
            )
        except OSError as error:
            control.close()
            raise EngineError(
                f"no process to try grammars in can be started: {error}; let the server start {sys.executable}"
            ) from error
    control.settimeout(MAX_START_SECONDS)
    try:
        control.sendall(given)
        ready = control.recv(1)
    except OSError:
        ready = b""
    if ready != _READY:
        running = [(process, control)]
        _end_all(running)
        raise EngineError(
            f"the process that tries grammars ended with status {process.returncode} before it was ready; wanted "
            f"{sys.executable} with llguidance, and memory for the tokenizer"
        )
    control.settimeout(MAX_WAIT_SECONDS)
    return process, control


def _ends(process: "subprocess.Popen[bytes]") -> bool:
    """Whether it has ended, or does so now."""
    with suppress(subprocess.TimeoutExpired):
        process.wait(_MAX_END_SECONDS)
    return process.returncode is not None


def _end_all(running: list[_Running]) -> None:
    """Safe to call from several threads: each process is ended by one of them."""
    while True:
        try:
            process, control = running.pop()
        except IndexError:
            return
        control.close()
        if process.returncode is None:  # its number is still its own
            with suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)  # with whatever it forked
            process.wait()
            with suppress(ChildProcessError):
                while True:  # where this is process 1, what that forked is ours now
                    os.waitpid(-process.pid, 0)


def serve(descriptor: int) -> None:
    """The process: forks for each socket that it is handed, until nobody is there to hand one."""
    import llguidance

    control = socket.socket(fileno=descriptor)
    tokenizer, vocabulary, stop_ids = json.loads(control.makefile("rb").readline())
    tokens = llguidance.LLTokenizer(tokenizer, n_vocab=vocabulary, eos_token=stop_ids)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for keepers
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # sent to all of a service at once; the server says when it is over
    os.nice(NICE)
    control.sendall(_READY)
    while (handed := socket.recv_fds(control, 1, 1))[0]:
        for descriptor in handed[1]:
            with socket.socket(fileno=descriptor) as asking, suppress(OSError):  # where no process is to be had
                if os.fork() == 0:
                    control.close()
                    _in_child(partial(_keep, asking, tokens))


def _in_child(do: Callable[[], None]) -> NoReturn:
    """Ends this process with it, whatever it does."""
    status = 1
    try:
        do()
        status = 0
    except MemoryError:
        status = _NO_MEMORY
    finally:
        os._exit(status)


def _keep(asking: socket.socket, tokens: Any) -> None:
    """Has a worker of its own answer, and says how that ended where it did not."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    worker = os.fork()
    if not worker:
        _in_child(partial(_work, asking, tokens))
    if status := os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]):
        asking.sendall(json.dumps({"status": status}).encode())


def _work(asking: socket.socket, tokens: Any) -> None:
    import llguidance

    for timer in (signal.SIGALRM, signal.SIGPROF):  # which end the process, whatever it computes
        signal.signal(timer, signal.SIG_DFL)  # the server may have ignored them
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [timer])
    signal.setitimer(signal.ITIMER_REAL, MAX_WORK_SECONDS)
    kind, text, limits, seconds, megabytes = json.loads(_all_of(asking))
    _bound_memory(megabytes)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    answer: dict[str, str]
    try:
        written = to_llguidance(Grammar(GrammarKind(kind), text))
    except MemoryError:
        raise
    except BaseException as error:  # the converters raise what they like, Rust's panics too
        answer = {"said": str(error)}
    else:
        matcher = llguidance.LLMatcher(tokens, written, log_level=0, limits=llguidance.LLParserLimits(**limits))
        matcher.compute_bitmask()  # finds out here, and not in the batch of everybody, what is too much to follow
        said = matcher.get_error()
        answer = {"said": said} if said else {"text": written}
    for each in (signal.ITIMER_PROF, signal.ITIMER_REAL):  # so that nothing ends it in the middle of its answer
        signal.setitimer(each, 0)
    asking.sendall(json.dumps(answer).encode())


def _bound_memory(megabytes: int) -> None:
    """Beyond what is taken, where the kernel says how much that is (Linux)."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            taken = int(file.read().split()[5]) * resource.getpagesize()
    except FileNotFoundError:
        return
    most, hard = taken + (megabytes << 20), resource.getrlimit(resource.RLIMIT_DATA)[1]
    resource.setrlimit(resource.RLIMIT_DATA, (most if hard == resource.RLIM_INFINITY else min(most, hard),) * 2)
