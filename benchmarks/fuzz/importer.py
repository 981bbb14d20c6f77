"""Mutated files of ESU's: pickles, in which anything may be named, and archives of arrays."""

import codecs
import io
import pickle
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from benchmarks.fuzz.mutations import mutated
from benchmarks.fuzz.target import FindingError, Inputs
from guards.artifact.manifest import ModelIdentity
from guards.errors import ArtifactError
from guards.esu.convert import ImportOptions, import_esu
from guards.esu.files import read_esu
from guards.methods.cube.guard import Regime

_TINY = ModelIdentity(
    architecture="LlamaForCausalLM",
    layers=2,
    d_model=4,
    d_ff=6,
    dtype="float32",
    tokenizer_sha256=None,
    weights_sha256=None,
)
_SUFFIXES = (".pkl", ".npz")
_OPTIONS = ImportOptions(alpha=2.0, regime=Regime.LAST_TOKEN.value, frame="bare")
_CALLS = (
    b"cos\nsystem\n(S'true'\ntR.",
    b"cbuiltins\neval\n(S'1'\ntR.",
    b"\x8c\x02os\x8c\x06system\x93",
    b"\x8c\x08builtins\x8c\x04exec\x93\x8c\x01a\x85R",
    b"(ios\nsystem\n",
    b"\x82\x01",
    b"Pid\n",
    b"Q",
    b"\x96\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"b",
    b"\x81",
    b"\x92",
    b"r\xff\xff\xff\x7f",
)
"""Opcodes that name, call or build something, or ask for much room."""
_FORBIDDEN = (
    *("exec", "import", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.remove", "os.rename", "os.putenv"),
    *("subprocess.", "socket.", "ctypes.", "shutil.", "pty."),
)


class _Watch:
    """What Python itself tells of: an audit hook is for good, so it looks at nothing while it is closed."""

    def __init__(self) -> None:
        self.open = False
        self.seen: list[str] = []
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[object, ...]) -> None:
        if not self.open or not event.startswith(_FORBIDDEN):
            return
        if event == "import" and str(arguments[0]).startswith("encodings"):
            return
        self.seen.append(event)


def _modules() -> list[dict[str, dict[str, Any]]]:
    rng = np.random.default_rng(0)
    cube = {"mean": rng.normal(size=6).astype("f4"), "std": rng.uniform(0.5, 1, 6).astype("f4"), "k": 4.5}
    numbers = {name: np.array([2.0, 3.0]) for name in ("mu1_lst", "sigma1_lst", "mu2_lst", "sigma2_lst")}
    return [
        {"model.layers.1.mlp.down_proj": cube},
        {"model.layers.0.mlp.gate_proj": {**numbers, "neuron_lst": [1, 5]}},
    ]


def _archive(modules: dict[str, dict[str, Any]]) -> bytes:
    file = io.BytesIO()
    arrays: dict[str, Any] = {
        f"{module}/{field}": np.asarray(value) for module, table in modules.items() for field, value in table.items()
    }
    np.savez(file, **arrays)
    return file.getvalue()


@contextmanager
def importer(scratch: Path) -> Iterator[Inputs]:
    """Both kinds of file, in both formats. A file that is read must make a guard, or be refused with a reason."""
    goods = [(".pkl", pickle.dumps(modules, protocol=4)) for modules in _modules()]
    goods += [(".npz", _archive(modules)) for modules in _modules()]
    for codec in ("raw-unicode-escape", "unicode-escape", "latin-1"):
        codecs.lookup(codec)
    watch = _Watch()
    for suffix, data in goods:  # what is imported late is imported now
        _tried(scratch / f"GSM8K{suffix}", data)
        _tried(scratch / f"GSM8K{suffix}", data[:-40])

    def mutation(dice: Random) -> bytes:
        suffix, data = dice.choice(goods)
        return _encoded(suffix, mutated(data, dice, _CALLS if suffix == ".pkl" else ()))

    def tried(data: bytes) -> str:
        suffix, changed = _SUFFIXES[int.from_bytes(data[:1]) % len(_SUFFIXES)], data[1:]
        path = scratch / f"GSM8K{suffix}"
        watch.seen, watch.open = [], True
        try:
            outcome = _tried(path, changed)
        finally:
            watch.open = False
        if watch.seen:
            raise FindingError(f"something ran: {watch.seen[:3]}")
        return "unchanged" if (suffix, changed) in goods else f"{suffix[1:]}, {outcome}"

    yield Inputs([_encoded(*good) for good in goods], mutation, tried, _CALLS)


def _encoded(suffix: str, data: bytes) -> bytes:
    return bytes([_SUFFIXES.index(suffix)]) + data


def _tried(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    try:
        import_esu(read_esu(path), _OPTIONS, _TINY)
    except ArtifactError as error:
        if not str(error):
            raise FindingError("refused without a word") from error
        return "refused"
    return "read"
