"""A grammar is compiled in a process of its own first, where it may take only so much.

llguidance counts its work where it follows a pattern, but not everywhere: an array of 100,000,000 items takes all
memory there is, an `allOf` of 50 patterns does not come to an end, and nothing stops a compilation that has begun.
"""

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from copy import copy
from typing import Any, NoReturn

from server.engines.errors import EngineError, InvalidOptionError

SECONDS = 1.0
"""Of a processor. Schemas of clients take some hundredths; 64 KiB of ranges of numbers took 0.4."""
MEGABYTES = 32
"""Beyond what the process has. Schemas of clients take 10 at most; what is let through here keeps half of it."""
_READY = "ready\n"


class Trial:
    """Compiles for one tokenizer, one grammar at a time. Safe to call from several threads."""

    def __init__(self, tokenizer: str, vocabulary: int, stop_ids: Sequence[int]) -> None:
        """`tokenizer`: what `plain_tokenizer` gives."""
        self._given = json.dumps([tokenizer, vocabulary, list(stop_ids), SECONDS, MEGABYTES])
        self._lock = threading.Lock()
        self._running: list[subprocess.Popen[str]] = []
        """One, or none."""
        weakref.finalize(self, _end_all, self._running)

    def refusal(self, text: str, limits: Mapping[str, object]) -> str:
        """What llguidance has against its own form of a grammar under limits of its parser, if anything.

        Raises InvalidOptionError where it takes too much to find out, EngineError where no process can be had.
        """
        with self._lock:
            if self._running and self._running[0].poll() is not None:  # ended from outside, as where memory is short
                _end(self._running.pop())
            if not self._running:
                self._running.append(self._started())
            answer = _ask(self._running[0], json.dumps([text, dict(limits)]))
            if not answer:
                status = _end(self._running.pop())
                raise EngineError(f"the process that tries grammars ended with status {status}; ask again")
        said = json.loads(answer)
        if isinstance(said, str):
            return said
        spent = f"{SECONDS:g} seconds of a processor" if said == -signal.SIGPROF else f"{MEGABYTES} MiB of memory"
        raise InvalidOptionError(
            f"the grammar takes more to compile than the {spent} that it may; let it repeat, count and combine less",
            "grammar",
        )

    def _started(self) -> "subprocess.Popen[str]":
        try:
            process = subprocess.Popen(
                [sys.executable, "-c", f"from {__name__} import serve; serve()"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                text=True,
                encoding="utf-8",
                start_new_session=True,
            )
        except OSError as error:
            raise EngineError(
                f"no process to try grammars in can be started: {error}; let the server start {sys.executable}"
            ) from error
        if _ask(process, self._given) != _READY:
            raise EngineError(
                f"the process that tries grammars ended with status {_end(process)} before it was ready; wanted "
                f"{sys.executable} with llguidance, and memory for the tokenizer"
            )
        return process


def plain_tokenizer(tokenizer: Any) -> str:
    """As tokenizer.json has it, with all of its tokens and for texts of any length."""
    backend = copy(tokenizer.backend_tokenizer)
    backend.no_padding()
    backend.no_truncation()
    return str(backend.to_str())


def _ask(process: "subprocess.Popen[str]", line: str) -> str:
    """Its answer, nothing if it ended."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(line + "\n")
        process.stdin.flush()
    except BrokenPipeError:
        return ""
    return process.stdout.readline()


def _end(process: "subprocess.Popen[str]") -> int:
    """The status with which it ended, by itself or now."""
    process.kill()
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        with suppress(BrokenPipeError):  # of what was not read
            pipe.close()
    return process.wait()


def _end_all(processes: "list[subprocess.Popen[str]]") -> None:
    while processes:
        _end(processes.pop())


def serve() -> None:
    """The other process: a child of its own tries each grammar, line by line until nobody is there to give one.

    What a child spends is gone with it, and the tokenizer, which takes seconds to read, is there for the next.
    """
    import llguidance

    tokenizer, vocabulary, stop_ids, seconds, megabytes = json.loads(sys.stdin.readline())
    tokens = llguidance.LLTokenizer(tokenizer, n_vocab=vocabulary, eos_token=stop_ids)
    print(_READY, end="", flush=True)
    for line in sys.stdin:
        child = os.fork()
        if not child:
            _try_one(tokens, line, seconds, megabytes)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status:
            print(json.dumps(status), flush=True)


def _try_one(tokens: Any, line: str, seconds: float, megabytes: int) -> NoReturn:
    """Ends this process, with 0 if it printed what llguidance says."""
    import llguidance

    status = 1
    try:
        _bound_memory(megabytes)
        signal.setitimer(signal.ITIMER_PROF, seconds)  # its signal ends the process, whatever that computes
        text, limits = json.loads(line)
        matcher = llguidance.LLMatcher(tokens, text, log_level=0, limits=llguidance.LLParserLimits(**limits))
        matcher.compute_bitmask()  # finds out here, and not in the batch of everybody, what is too much to follow
        print(json.dumps(matcher.get_error()), flush=True)
        status = 0
    finally:
        os._exit(status)


def _bound_memory(megabytes: int) -> None:
    """Beyond what is taken, where the kernel says how much that is (Linux)."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            taken = int(file.read().split()[5]) * resource.getpagesize()
    except FileNotFoundError:
        return
    most = taken + (megabytes << 20)
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
