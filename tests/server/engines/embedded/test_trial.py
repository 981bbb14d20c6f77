"""Grammars that take too much are tried in a process of their own, and what becomes of it."""

import gc
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from guards.model.encoding import TextCodec
from server.engines.embedded import trial
from server.engines.embedded.grammars import Grammars
from server.engines.errors import EngineBusyError, EngineError, EngineStoppedError, InvalidOptionError
from server.engines.request import Grammar, GrammarKind
from tests.server.engines.embedded.grammars import END, V, matches, schema


def counting(minimum: int) -> Grammar:
    return schema({"type": "array", "items": {"type": "string"}, "minItems": minimum})


def process_of(grammars: Grammars) -> "subprocess.Popen[bytes]":
    assert grammars._tokens is not None
    ((process, _),) = grammars._tokens[1]._running
    return process


@pytest.mark.parametrize(
    ("minimum", "limit", "value", "said"),
    [(100_000_000, "SECONDS", 60.0, "32 MiB of memory"), (300_000, "MEGABYTES", 4096, "0.001 seconds of a processor")],
)
def test_what_takes_too_much_to_compile_ends_no_more_than_its_trial(
    codec: TextCodec, monkeypatch: pytest.MonkeyPatch, minimum: int, limit: str, value: float, said: str
) -> None:
    """No limit of llguidance's ends it: in the server's process it would take all memory, or a thread for good."""
    monkeypatch.setattr(trial, "SECONDS", 0.001)
    monkeypatch.setattr(trial, limit, value)
    grammars = Grammars(codec, V, frozenset({END}))
    with pytest.raises(InvalidOptionError, match=f"takes more to compile than the {said}") as refused:
        grammars.check(counting(minimum))
    assert refused.value.param == "grammar"


@pytest.mark.parametrize("text", ["root ::= " + "\n" * 12_000 + "x", '"a\\' * 20_000])
def test_what_takes_too_much_to_be_read_ends_no_more_either(grammars: Grammars, text: str) -> None:
    """Regular expressions find out which notation a grammar is in. In the server's process nothing would end them."""
    with pytest.raises(InvalidOptionError, match="takes more to compile than the 1 seconds of a processor"):
        grammars.check(Grammar(GrammarKind.EBNF, text))


def test_a_grammar_after_one_that_took_too_much(grammars: Grammars, codec: TextCodec) -> None:
    """What was refused takes nothing of the process with it, which takes seconds to start."""
    assert matches(grammars, codec, counting(2), '["a", "b"]')
    before = process_of(grammars)
    with pytest.raises(InvalidOptionError, match="takes more to compile than"):
        grammars.check(counting(100_000_000))
    assert matches(grammars, codec, counting(3), '["a", "b", "c"]')
    assert process_of(grammars) is before
    assert before.poll() is None


def test_a_grammar_does_not_wait_for_anothers_trial(
    grammars: Grammars, codec: TextCodec, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, go_on = threading.Event(), threading.Event()

    def late(ours: socket.socket, what: Sequence[object]) -> dict[str, Any]:
        if not asked.is_set():
            asked.set()
            assert go_on.wait(60)
        return answer(ours, what)

    answer = trial._answer
    monkeypatch.setattr(trial, "_answer", late)
    first = threading.Thread(target=grammars.check, args=[counting(7)])
    first.start()
    assert asked.wait(60)
    assert matches(grammars, codec, counting(0), "[]")
    go_on.set()
    first.join()


def test_once_closed_nothing_is_compiled(codec: TextCodec) -> None:
    grammars = Grammars(codec, V, frozenset({END}))
    grammars.check(counting(1))
    process = process_of(grammars)
    grammars.close()
    assert process.returncode == -signal.SIGKILL
    with pytest.raises(EngineStoppedError, match="has stopped"):
        grammars.check(counting(2))
    grammars = Grammars(codec, V, frozenset({END}))
    grammars.check(counting(1))
    assert grammars._tokens is not None
    grammars._tokens[1].close()  # as while a thread is about to hand one over
    with pytest.raises(EngineStoppedError, match="has stopped"):
        grammars.check(counting(2))
    assert not grammars._tokens[1]._running


def test_a_grammar_that_gets_no_processor_is_asked_for_again(
    grammars: Grammars, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "_answer", lambda *_: {"status": -signal.SIGALRM})
    with pytest.raises(EngineBusyError, match="did not get 1 seconds of a processor soon enough: try again"):
        grammars.check(counting(11))


def test_a_trial_that_was_killed_is_started_again(grammars: Grammars, codec: TextCodec) -> None:
    grammars.check(counting(4))
    process_of(grammars).kill()
    process_of(grammars).wait()
    assert matches(grammars, codec, counting(1), '["a"]')


def test_a_trial_that_takes_nothing_any_more_is_started_again(grammars: Grammars) -> None:
    grammars.check(counting(4))
    ends = process_of(grammars)
    assert grammars._tokens is not None
    grammars._tokens[1]._running[0][1].shutdown(socket.SHUT_RDWR)  # as where it ends, before it can be waited for
    grammars.check(counting(12))
    assert process_of(grammars) is not ends
    assert process_of(grammars).poll() is None


def test_a_trial_that_is_killed_meanwhile_is_done_again(grammars: Grammars, monkeypatch: pytest.MonkeyPatch) -> None:
    grammars.check(counting(4))

    def killed(ours: socket.socket, asked: Sequence[object]) -> dict[str, Any]:
        monkeypatch.undo()
        os.killpg(process_of(grammars).pid, signal.SIGKILL)
        return answer(ours, asked)

    answer = trial._answer
    monkeypatch.setattr(trial, "_answer", killed)
    ends = process_of(grammars)
    grammars.check(counting(13))
    assert process_of(grammars) is not ends


def test_a_trial_that_is_killed_again_is_an_error(grammars: Grammars, monkeypatch: pytest.MonkeyPatch) -> None:
    grammars.check(counting(5))

    def killed(ours: socket.socket, asked: Sequence[object]) -> dict[str, Any]:
        os.killpg(process_of(grammars).pid, signal.SIGKILL)
        return answer(ours, asked)

    answer = trial._answer
    monkeypatch.setattr(trial, "_answer", killed)
    with pytest.raises(EngineError, match="the process that tries grammars gave no answer; ask again"):
        grammars.check(counting(6))
    monkeypatch.undo()
    grammars.check(counting(6))


def test_a_trial_that_does_not_answer_is_ended(grammars: Grammars, monkeypatch: pytest.MonkeyPatch) -> None:
    grammars.check(counting(8))
    stopped = process_of(grammars)
    stopped.send_signal(signal.SIGSTOP)
    monkeypatch.setattr(trial, "MAX_WAIT_SECONDS", 0.1)
    with pytest.raises(EngineError, match="the process that tries grammars gave no answer; ask again"):
        grammars.check(counting(9))
    assert stopped.returncode == -signal.SIGKILL
    monkeypatch.undo()
    grammars.check(counting(9))


@pytest.mark.parametrize("said", ['{"text": "start: A"}{"status": -27}', '{"text": "sta', ""])
def test_what_is_no_whole_answer_is_none(said: str) -> None:
    """As of a worker that is ended while it writes."""
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            theirs.sendall(said.encode())
        assert trial._answer(ours, []) == {}


def test_a_trial_ends_with_whoever_wants_it(codec: TextCodec) -> None:
    grammars = Grammars(codec, V, frozenset({END}))
    grammars.check(Grammar(GrammarKind.REGEX, "7"))
    process = process_of(grammars)
    assert process.poll() is None
    del grammars
    gc.collect()
    assert process.returncode is not None


def test_a_trial_runs_nothing_of_the_working_directory(
    codec: TextCodec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "resource.py").write_text("raise SystemExit(3)")
    monkeypatch.chdir(tmp_path)
    Grammars(codec, V, frozenset({END})).check(Grammar(GrammarKind.REGEX, "7"))
    unsafe = subprocess.run([sys.executable, "-c", "import resource"], check=False)
    assert unsafe.returncode == 3, "positive control"


@pytest.mark.parametrize(
    ("executable", "said"),
    [
        (shutil.which("false") or "false", "the process that tries grammars ended with status 1 before it was ready"),
        ("/no/such/file", "no process to try grammars in can be started: .*No such file"),
    ],
)
def test_where_no_trial_can_be_had_nothing_is_compiled(
    codec: TextCodec, monkeypatch: pytest.MonkeyPatch, executable: str, said: str
) -> None:
    monkeypatch.setattr("sys.executable", executable)
    with pytest.raises(EngineError, match=said):
        Grammars(codec, V, frozenset({END})).check(Grammar(GrammarKind.REGEX, "7"))
