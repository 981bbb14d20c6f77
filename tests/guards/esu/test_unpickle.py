"""Pickles: plain arrays come out, everything else is refused, and nothing a pickle names ever runs."""

import builtins
import functools
import io
import os
import pickle
import subprocess
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from guards.errors import ArtifactError
from guards.esu import unpickle
from guards.esu.unpickle import unpickle_arrays


def read(data: bytes) -> Any:
    """What the reader makes of these bytes."""
    return unpickle_arrays(data, "file.pkl")


class Call:
    """Pickles as a call of a function, as hostile pickles do."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize(
    "array",
    [
        np.arange(12, dtype=np.float32).reshape(3, 4),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.arange(5, dtype=">f8"),
        np.array([True, False]),
        np.array(3.5),
        np.zeros((0, 4), dtype=np.int64),
        np.arange(4, dtype=np.uint16),
    ],
)
def test_arrays_come_out_equal(array: np.ndarray[Any, Any], protocol: int) -> None:
    """Protocol 5 writes arrays through `_frombuffer`, which is not among the names admitted."""
    data = pickle.dumps({"a": array}, protocol=protocol)
    if protocol == 5:
        with pytest.raises(ArtifactError, match=r"_frombuffer|opcode"):
            read(data)
        return
    got = read(data)["a"]
    assert got.dtype == array.dtype.newbyteorder("=")
    assert np.array_equal(got, array)


def test_numbers_and_containers_come_out_equal() -> None:
    value = {"k": 17.25, "n": [1, 2, 2**40], "t": (None, True, "text", b"bytes"), "s": np.float64(2.5)}
    got = read(pickle.dumps(value, protocol=4))
    assert got == value
    assert isinstance(got["s"], np.float64)


def test_the_old_spelling_of_numpy_is_read() -> None:
    """NumPy 1 wrote `numpy.core`, NumPy 2 writes `numpy._core`."""
    data = pickle.dumps(np.arange(3.0), protocol=3)
    assert b"numpy._core.multiarray" in data
    old = data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert read(old).tolist() == [0, 1, 2]


HOSTILE: list[Callable[[Path], object]] = [
    lambda mark: Call(os.system, f"touch {mark}"),
    lambda mark: Call(builtins.eval, f"open({str(mark)!r}, 'w')"),
    lambda mark: Call(builtins.exec, f"open({str(mark)!r}, 'w')"),
    lambda mark: Call(builtins.open, str(mark), "w"),
    lambda mark: Call(io.open, str(mark), "w"),
    lambda mark: Call(subprocess.call, ["touch", str(mark)]),
    lambda mark: Call(getattr, Call(__import__, "os"), "system"),
    lambda mark: Call(functools.partial, os.mkdir, str(mark)),
    lambda mark: Call(functools.partial(os.mkdir, str(mark))),
    lambda mark: Call(map, os.mkdir, [str(mark)]),
    lambda mark: Call(np.load, str(mark)),
    lambda mark: Call(np.save, str(mark), 1),
    lambda mark: Call(np.testing.assert_equal, 1, 2),
    lambda mark: Call(np.fromfile, str(mark)),
    lambda mark: Call(pickle.loads, pickle.dumps(Call(os.mkdir, str(mark)))),
    lambda mark: Call(bytearray, 1 << 40),
    lambda mark: Call(np.ndarray, (1 << 40,)),
    lambda mark: OrderedDict(a=1),
    lambda mark: {1, 2},
    lambda mark: frozenset("ab"),
    lambda mark: bytearray(b"ab"),
    lambda mark: 1j,
    lambda mark: mark,
    lambda mark: os.system,
    lambda mark: np.ndarray,
    lambda mark: np.dtype("f4"),
    lambda mark: np.array([Call(os.mkdir, str(mark))], dtype=object),
    lambda mark: np.array(["text"]),
    lambda mark: np.zeros(2, dtype=[("a", "f4")]),
    lambda mark: np.array(["2026-01-01"], dtype="datetime64[D]"),
    lambda mark: np.zeros(2).view(np.recarray),
    lambda mark: {(1, 2): 3},
]


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: {"m": {"mean": x}}, lambda x: [[(x,)]]])
@pytest.mark.parametrize("protocol", range(2, 6))
@pytest.mark.parametrize("make", HOSTILE)
def test_nothing_else_comes_out_and_nothing_runs(
    tmp_path: Path, make: Callable[[Path], object], protocol: int, wrap: Callable[[object], object]
) -> None:
    mark = tmp_path / "ran"
    data = pickle.dumps(wrap(make(mark)), protocol=protocol)
    with pytest.raises(ArtifactError, match=r"file\.pkl"):
        read(data)
    assert not mark.exists()


def test_the_hostile_pickles_are_hostile(tmp_path: Path) -> None:
    """Positive control: an ordinary unpickler runs what the test above refuses."""
    mark = tmp_path / "ran"
    pickle.loads(pickle.dumps(HOSTILE[0](mark)))
    assert mark.exists()


_NDARRAY = b"cnumpy\nndarray\n"
_RECONSTRUCT = b"cnumpy._core.multiarray\n_reconstruct\n"
_EMPTY = _RECONSTRUCT + b"(" + _NDARRAY + b"K\x00\x85C\x01btR"
_FLOAT = b"cnumpy\ndtype\n(X\x02\x00\x00\x00f4\x89\x88tR"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b".",
        b"\x80\x04",
        b"\x80\x04N",
        b"\x80\x63N.",
        b"not a pickle",
        b"\x93NUMPY",
        b"PK\x03\x04",
        b"I1\n.",
        b"S'text'\n.",
        b"Pid\n.",
        b"X\x02\x00\x00\x00idQ.",
        b"\x82\x01.",
        b"(ios\nsystem\n.",
        b"(cos\nsystem\nX\x02\x00\x00\x00lso.",
        b"Nr\xff\xff\xff\x7f.",
        b"Np999999999\n.",
        b"h\x07.",
        b"(((((",
        b"\x8d\xff\xff\xff\xff\xff\xff\xff\x7f",
        b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f",
        b"\x95\xff\xff\xff\xff\xff\xff\xff\x7f.",
        b"\x8b\xff\xff\xff\x7f.",
        _NDARRAY + b"(K\x01tR.",
        _NDARRAY + b"}X\x01\x00\x00\x00aK\x01sb.",
        _NDARRAY + b"N}X\x01\x00\x00\x00aK\x01s\x86b.",
        _RECONSTRUCT + b"(K\x01K\x01K\x01tR.",
        _RECONSTRUCT + b"}X\x0c\x00\x00\x00__setstate__Nsb.",
        _EMPTY + b"}X\x05\x00\x00\x00shapeK\x01sb.",
        _EMPTY + b"Nb.",
        _EMPTY + b"(K\x01J\xff\xff\xff\xff\x85" + _FLOAT + b"\x89C\x04aaaatb.",
        _EMPTY + b"(K\x01J\xff\xff\xff\x7f\x85" + _FLOAT + b"\x89C\x04aaaatb.",
        _EMPTY + b"(K\x01K\x02\x85" + _FLOAT + b"\x89C\x04aaaatb.",
        _EMPTY + b"(K\x01K\x01\x85K\x05\x89C\x04aaaatb.",
        b"cnumpy\ndtype\n(X\x01\x00\x00\x00O\x89\x88tR.",
        b"cnumpy\ndtype\n(X\x0b\x00\x00\x00f8000000000\x89\x88tR.",
        _FLOAT + b"(K\x03X\x01\x00\x00\x00<K\x01NNtb.",
        b"cnumpy._core.multiarray\nscalar\n(" + _FLOAT + b"C\x03aaatR.",
        b"cnumpy._core.multiarray\nscalar\n(K\x01C\x03aaatR.",
        b"]\x94h\x00a.",
        b"]" * 500 + b"a" * 499 + b".",
    ],
)
def test_malformed_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ArtifactError, match=r"file\.pkl"):
        read(data)


def test_shared_references_do_not_multiply() -> None:
    """Ten lists of ten references each would be 10^8 lists when written out."""
    value: object = [0] * 10
    for _ in range(7):
        value = [value] * 10
    with pytest.raises(ArtifactError, match="nested or shared"):
        read(pickle.dumps(value, protocol=4))


def test_an_oversized_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = pickle.dumps(np.zeros(100), protocol=4)
    read(data)
    monkeypatch.setattr(unpickle, "MAX_BYTES", len(data) - 1)
    with pytest.raises(ArtifactError, match=f"got {len(data)} bytes, wanted at most"):
        read(data)


def test_corrupt_bytes_are_read_or_refused() -> None:
    """Every byte of a small pickle, changed in three ways: a value of plain types, or ArtifactError."""
    data = pickle.dumps({"m": {"mean": np.arange(2, dtype=np.float32), "k": 1.5}}, protocol=4)
    for place in range(len(data)):
        for change in (0x01, 0x80, 0xFF):
            damaged = bytearray(data)
            damaged[place] ^= change
            try:
                got = read(bytes(damaged))
            except ArtifactError:
                continue
            assert got is None or isinstance(got, dict | list | tuple | str | bytes | int | float)
