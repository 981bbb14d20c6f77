"""Pickles: plain arrays come out, everything else is refused, and nothing a pickle names ever runs."""

import builtins
import functools
import io
import os
import pickle
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as stn

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


_watching: list[str] | None = None


def _audit(event: str, arguments: tuple[object, ...]) -> None:
    if _watching is not None and not (event == "import" and str(arguments[0]).startswith("encodings")):
        _watching.append(event)


sys.addaudithook(_audit)  # for good: Python takes none back


@contextmanager
def nothing_runs() -> Iterator[None]:
    """Nothing may be imported, opened, compiled, started or looked up inside."""
    global _watching
    seen: list[str] = []
    _watching = seen
    try:
        yield
    finally:
        _watching = None
    assert not seen


def plain(value: object) -> bool:
    """Whether a value is of builtin types and NumPy's numbers throughout."""
    if type(value) is dict:
        return all(type(key) in (str, int) and plain(item) for key, item in value.items())
    if type(value) in (list, tuple):
        return all(map(plain, value))  # type: ignore[call-overload]
    if type(value) is np.ndarray or isinstance(value, np.generic):
        return value.dtype.kind in "biuf"
    return value is None or type(value) in (bool, int, float, str, bytes)


def check_harmless(data: bytes) -> None:
    """A plain value comes out, or ArtifactError; nothing runs."""
    with nothing_runs():
        try:
            value = read(data)
        except ArtifactError:
            return
    assert plain(value)


NUMBERS = st.one_of(
    stn.boolean_dtypes(),
    stn.integer_dtypes(endianness="?"),
    stn.unsigned_integer_dtypes(endianness="?"),
    stn.floating_dtypes(endianness="?", sizes=(16, 32, 64)),
)
ARRAYS = stn.arrays(NUMBERS, stn.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))


@given(ARRAYS, st.booleans(), st.sampled_from([2, 3, 4]))
def test_arrays_come_out_equal(array: np.ndarray[Any, Any], fortran: bool, protocol: int) -> None:
    array = np.asfortranarray(array) if fortran else array
    data = pickle.dumps({"a": array}, protocol=protocol)
    if protocol == 2:  # writes bytes through `_codecs.encode`
        with pytest.raises(ArtifactError, match=r"_codecs|opcode"):
            read(data)
        return
    got = read(data)["a"]
    assert (type(got), got.dtype, got.shape) == (np.ndarray, array.dtype.newbyteorder("="), array.shape)
    assert got.tobytes() == array.astype(got.dtype).tobytes()


@given(ARRAYS)
def test_protocol_5_is_not_among_what_is_read(array: np.ndarray[Any, Any]) -> None:
    """It writes arrays through `_frombuffer`."""
    with pytest.raises(ArtifactError, match=r"_frombuffer|opcode"):
        read(pickle.dumps(array, protocol=5))


ATOMS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=5), st.binary(max_size=5)
)


@given(
    st.recursive(
        ATOMS,
        lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text() | st.integers(), inner),
        max_leaves=8,
    ),
    st.sampled_from([3, 4]),
)
@example([[[[[[[[]]]]]]]], 4)
@example([[[[[[[[{}]]]]]]]], 4)
def test_containers_come_out_equal_or_are_nested_too_deep(value: object, protocol: int) -> None:
    data = pickle.dumps(value, protocol=protocol)
    if depth(value) > unpickle.MAX_DEPTH:
        with pytest.raises(ArtifactError, match="nested"):
            read(data)
        return
    got = read(data)
    assert (type(got), got) == (type(value), value)


def depth(value: object) -> int:
    """How many containers are inside each other."""
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return max((1 + depth(item) for item in items), default=0)


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


WRAPS: list[Callable[[object], object]] = [lambda x: x, lambda x: {"m": {"mean": x}}, lambda x: [[(x,)]]]


@pytest.mark.parametrize("make", HOSTILE)
def test_nothing_else_comes_out_and_nothing_runs(tmp_path: Path, make: Callable[[Path], object]) -> None:
    mark = tmp_path / "ran"
    for protocol, wrap in product(range(2, 6), WRAPS):
        data = pickle.dumps(wrap(make(mark)), protocol=protocol)
        with nothing_runs(), pytest.raises(ArtifactError, match=r"file\.pkl"):
            read(data)
    assert not mark.exists()


def test_the_hostile_pickles_are_hostile(tmp_path: Path) -> None:
    """Positive control: an ordinary unpickler runs what the test above refuses."""
    mark = tmp_path / "ran"
    with pytest.raises(AssertionError, match=r"os\.system"), nothing_runs():
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


VALID = pickle.dumps({"m": {"mean": np.arange(2, dtype=np.float32), "k": np.float64(1.5), "n": [1]}}, protocol=4)
PLACES = st.integers(0, len(VALID) - 1)


def test_every_bit_of_a_file_may_be_wrong() -> None:
    assert plain(read(VALID))
    for place, bit in product(range(len(VALID)), range(8)):
        check_harmless(VALID[:place] + bytes([VALID[place] ^ 1 << bit]) + VALID[place + 1 :])


@settings(max_examples=500)
@given(st.lists(st.tuples(PLACES, PLACES, st.binary(max_size=3)), min_size=1, max_size=4))
def test_a_damaged_file_is_read_or_refused(changes: list[tuple[int, int, bytes]]) -> None:
    """Stretches cut out, or written over with other bytes."""
    data = VALID
    for one, other, put in changes:
        data = data[: min(one, other)] + put + data[max(one, other) :]
    check_harmless(data)


CODES = [bytes([code]) for code in range(256)]
PARTS = st.sampled_from(
    [
        *(
            b"(",
            b"t",
            b"\x85",
            b"\x86",
            b"\x87",
            b")",
            b"]",
            b"}",
            b"l",
            b"d",
            b"a",
            b"e",
            b"s",
            b"u",
            b"0",
            b"1",
            b"\x94",
        ),
        *(b"R", b"b", b"\x81", b"\x92", b"o", b"\x93", b"N", b"\x88", b"K\x00", b"K\x01", b"h\x00", b"h\x01", b"q\x00"),
        *(
            b"C\x04aaaa",
            b"X\x02\x00\x00\x00f4",
            b"X\x02\x00\x00\x00os",
            b"X\x06\x00\x00\x00system",
            b"X\x01\x00\x00\x00<",
        ),
        *(
            _NDARRAY,
            _RECONSTRUCT,
            _EMPTY,
            _FLOAT,
            b"cnumpy._core.multiarray\nscalar\n",
            b"cos\nsystem\n",
            b"ios\nsystem\n",
        ),
        *(b"cbuiltins\neval\n", b"X\x04\x00\x00\x00true", b"\x95\x02\x00\x00\x00\x00\x00\x00\x00"),
    ]
)


@settings(max_examples=1000)
@given(st.lists(PARTS | st.sampled_from(CODES), max_size=20))
@example([b"cos\nsystem\n", b"X\x04\x00\x00\x00true", b"\x85", b"R"])
def test_any_program_of_opcodes_is_read_or_refused(parts: list[bytes]) -> None:
    check_harmless(b"".join(parts) + b".")


@given(st.binary(max_size=64))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    check_harmless(data)
