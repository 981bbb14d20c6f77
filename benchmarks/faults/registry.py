"""Every fault, and the server that it is done to."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import MappingProxyType

from benchmarks.faults import scripts
from benchmarks.faults.fault import Fault, Scene, Seen
from benchmarks.faults.served import Served, serve
from benchmarks.serving import ROOT

_AUDIT_BYTES = 96 * 1024
_SMALL = ("--max-model-len", "512", "--max-num-seqs", "16", "--gpu-memory-utilization", "0.3")
_VLLM = ("--engine", "vllm", *_SMALL, "--enforce-eager")
_TWO_RANKS = (*_VLLM, "--tensor-parallel-size", "2")
_ANY_CORE = {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}
"""vLLM binds each rank to a NUMA node of its own otherwise, and does not start with fewer nodes than ranks."""


def _plain(
    *arguments: str, program: Sequence[str] = ("server.cli",), environment: Mapping[str, str] = MappingProxyType({})
) -> Callable[[Path], AbstractContextManager[Served]]:
    return lambda _: serve(*arguments, program=program, environment={**os.environ, **environment})


@contextmanager
def _full_disk(folder: Path) -> Iterator[Served]:
    audit = folder / "audit"
    audit.mkdir()
    with serve("--audit-dir", str(audit), largest_file=_AUDIT_BYTES) as served:
        yield served


@contextmanager
def _faked_clock(folder: Path) -> Iterator[Served]:
    library = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
    if library is None:
        raise FileNotFoundError("libfaketime is missing: apt-get install faketime")
    (folder / "clock").write_text("+0d\n")
    faked = {
        "LD_PRELOAD": str(library),
        "FAKETIME_TIMESTAMP_FILE": str(folder / "clock"),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    audit = folder / "audit"
    audit.mkdir()
    with serve("--audit-dir", str(audit), environment={**os.environ, **faked}) as served:
        yield served


@contextmanager
def _with_admin(folder: Path) -> Iterator[Served]:
    guards = folder / "guards"
    shutil.copytree(ROOT / "artifacts" / "demo" / "guards" / scripts.GUARD, guards / scripts.GUARD)
    keys = folder / "keys.json"
    for name, role in (("caller", "operator"), ("admin", "admin")):
        command = [sys.executable, "-m", "server.cli", "key", "add", name, "--file", str(keys), "--role", role]
        made = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
        (folder / name).write_text(made.stdout.strip())
    with serve("--artifacts", str(guards / scripts.GUARD), "--api-keys-file", str(keys)) as served:
        yield served


def _caller(folder: Path) -> str:
    return (folder / "caller").read_text()


def _fault(
    name: str,
    what: str,
    wanted: str,
    run: Callable[[Scene], Seen],
    serving: Callable[[Path], AbstractContextManager[Served]],
    engine: str = "embedded",
    ranks: int = 1,
) -> Fault:
    return Fault(name, engine, what, wanted, run, serving, ranks=ranks)


_GOES_ON = "all others are served on, and its queue empties"
_SAYS_SO = "running answers end in an error, `/health` and all requests after it say 503"
_HURT = "benchmarks.faults.hurt"
_DRAINS = "running answers end, and the exit status is 0 within a minute"

_ALL = (
    _fault("vanish", "300 callers leave their streams", _GOES_ON, scripts.vanish, _plain()),
    _fault(
        "slow-readers", "24 readers take nothing of their streams for a while", _GOES_ON, scripts.slow_readers, _plain()
    ),
    _fault(
        "engine-thread",
        "the batcher's thread ends",
        _SAYS_SO,
        scripts.wounded_for_good,
        _plain(program=(_HURT, "thread")),
    ),
    _fault(
        "forward-pass",
        "one forward pass raises",
        "its requests end in errors; all is well after it, or `/ready` says not",
        scripts.wounded_once,
        _plain(program=(_HURT, "pass")),
    ),
    _fault(
        "disk-full",
        "the audit log's file may not grow (RLIMIT_FSIZE)",
        "withheld answers become errors, the others go on",
        scripts.disk_full,
        _full_disk,
    ),
    _fault(
        "clock-steps",
        "the wall clock jumps by 400 days (libfaketime)",
        "nothing changes",
        scripts.clock_steps,
        _faked_clock,
    ),
    Fault(
        "corrupt-reload",
        "embedded",
        "a running server is offered an artifact with a bit off, one cut short and none",
        "each is refused, the old guard judges on",
        scripts.corrupt_reload,
        _with_admin,
        key=_caller,
    ),
    _fault("stop", "SIGTERM under load", _DRAINS, scripts.stop_under_load, _plain()),
    _fault("vllm-vanish", "300 callers leave their streams", _GOES_ON, scripts.vanish, _plain(*_VLLM), "vllm"),
    _fault("vllm-core", "EngineCore is killed", _SAYS_SO, scripts.kill_core, _plain(*_VLLM), "vllm"),
    _fault(
        "vllm-worker",
        "one of two workers is killed",
        _SAYS_SO,
        scripts.kill_worker,
        _plain(*_TWO_RANKS, environment=_ANY_CORE),
        "vllm",
        2,
    ),
    _fault("vllm-stop", "SIGTERM under load", _DRAINS, scripts.stop_under_load, _plain(*_VLLM), "vllm"),
)
FAULTS = {fault.name: fault for fault in _ALL}
