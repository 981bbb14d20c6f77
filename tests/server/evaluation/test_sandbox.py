"""The cage: what is let out of it, and that nothing else is."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from venv import EnvBuilder

import pytest

from server.evaluation.sandbox import Isolation, Limits, Outcome, probe, run_program

QUICK = Limits(wall_seconds=2.0, cpu_seconds=1, memory_bytes=1 << 29)


def test_what_passes_and_what_fails() -> None:
    assert run_program("assert 1 + 1 == 2").outcome is Outcome.PASSED
    failed = run_program("print('so far')\nassert 1 + 1 == 3")
    assert (failed.outcome, failed.status) == (Outcome.FAILED, 1)
    assert "so far" in failed.output
    assert "AssertionError" in failed.output


@pytest.mark.parametrize("code", ["exit(0)", "import os; os._exit(0)", "raise SystemExit", "def f(:", "'''", "\ud800"])
def test_an_early_or_broken_end_is_no_success(code: str) -> None:
    assert run_program(code + "\nassert False").outcome is Outcome.FAILED


@pytest.mark.parametrize(
    "code",
    [
        "while True: pass",
        "import time; time.sleep(1e6)",
        "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 64))\nwhile True: pass",
        "import os; os.close(1); os.close(2)\nwhile True: pass",
    ],
)
def test_an_endless_program_is_ended(code: str) -> None:
    assert run_program(code, QUICK).outcome in (Outcome.TIMEOUT, Outcome.KILLED)


def test_it_can_kill_nobody_but_itself_where_the_machine_permits_namespaces() -> None:
    if probe().files:
        pytest.skip("this machine permits no namespaces, and an evaluation says so")
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, start_new_session=True) as bystander:
        ran = run_program(f"import os; os.kill({bystander.pid}, 9)")
        assert bystander.poll() is None
        bystander.kill()
    assert (ran.outcome, "ProcessLookupError" in ran.output) == (Outcome.FAILED, True)
    assert run_program("import os; os.kill(0, 9)", QUICK).outcome in (Outcome.KILLED, Outcome.PASSED)


@pytest.mark.skipif(os.getuid() != 0, reason="only root becomes somebody else")
def test_an_environment_in_a_folder_of_roots_own_runs_it(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    EnvBuilder().create(tmp_path / "own")
    script = (
        "import sys; sys.base_prefix = '/'  # as where Python itself is everybody's\n"
        "from server.evaluation.sandbox import run_program as run; print(run('').outcome, run('1 / 0').outcome)"
    )
    paths = {"PYTHONPATH": os.pathsep.join(filter(None, [str(Path.cwd()), *sys.path]))}
    python = [str(tmp_path / "own" / "bin" / "python"), "-c", script]
    done = subprocess.run(python, env={**os.environ, **paths}, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["passed", "failed"]


def test_no_process_can_be_started_beside_it() -> None:
    bomb = run_program("import os\nwhile True: os.fork()", QUICK)
    assert (bomb.outcome, "Resource temporarily unavailable" in bomb.output) == (Outcome.FAILED, True)
    for code in (
        "import subprocess; subprocess.run(['true'])",
        "import threading as t; t.Thread(target=print).start()",
    ):
        assert run_program(code, QUICK).outcome is Outcome.FAILED


def test_memory_is_bounded() -> None:
    limits = Limits(memory_bytes=1 << 28)  # on a busy machine, QUICK's second passes before much memory is touched
    hog = run_program("kept = []\nwhile True: kept.append(bytearray(1 << 24))", limits)
    assert (hog.outcome, "MemoryError" in hog.output) == (Outcome.FAILED, True)


def test_output_is_bounded() -> None:
    loud = run_program("while True: print('x' * 1000)", QUICK)
    assert loud.outcome is Outcome.OUTPUT
    assert len(loud.output) == QUICK.output_bytes


def test_files_are_bounded_and_gone_afterwards() -> None:
    ran = run_program("import os; open('a', 'w').write('x'); print(os.getcwd(), os.listdir())")
    assert ran.outcome is Outcome.PASSED
    folder, listed = ran.output.split(maxsplit=1)
    assert listed.strip() == "['a']"
    assert not Path(folder).exists()
    assert run_program("open('a', 'wb').write(bytes(1 << 22))").outcome is Outcome.FAILED


def test_nothing_of_ours_is_in_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKILLGUARD_KEY", "secret")
    assert "secret" not in run_program("import os; print(dict(os.environ))").output
    assert run_program("import sys; assert sys.stdin.read() == '' and sys.flags.isolated").outcome is Outcome.PASSED


def test_it_cannot_write_outside_where_the_machine_permits_namespaces(tmp_path: Path) -> None:
    os.chmod(tmp_path, 0o777)
    ran = run_program(f"open({str(tmp_path / 'out')!r}, 'w').write('x')")
    escaped = (tmp_path / "out").exists()
    assert (ran.outcome is Outcome.PASSED) == escaped
    if not probe().files:
        assert not escaped


def test_it_reaches_no_network_where_the_machine_permits_namespaces() -> None:
    if probe().network:
        pytest.skip("this machine permits no network namespace, and an evaluation says so")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        # With the namespace, even the loopback is another one.
        ran = run_program(f"import socket; socket.create_connection(('127.0.0.1', {port}), 2)")
    assert ran.outcome is Outcome.FAILED


def test_the_probe_says_what_holds() -> None:
    assert isinstance(probe(), Isolation)
