"""Reads a pickle of NumPy arrays and builtin containers without running anything that is in it.

Published parameters of ESU come as pickles, and unpickling runs whatever the file names. Here nothing named is ever
looked up: the few names that NumPy's own pickles use stand for inert records, every other name is refused, and
arrays are built from the records' bytes afterwards. Opcodes are screened first, since some of them build objects or
claim memory without naming anything.
"""

import io
import math
import pickle
import pickletools
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from guards.errors import ArtifactError

MAX_BYTES = 256 << 20
MAX_DEPTH = 8

_OPCODE = re.compile(
    "PROTO|FRAME|STOP|MARK|POP|POP_MARK|MEMOIZE|(LONG_)?BIN(PUT|GET)"
    "|NONE|NEWTRUE|NEWFALSE|BININT[12]?|LONG1|BINFLOAT"
    "|(SHORT_)?BIN(STRING|BYTES|UNICODE)|BIN(BYTES|UNICODE)8"
    "|EMPTY_TUPLE|TUPLE[123]?|EMPTY_LIST|LIST|APPENDS?|EMPTY_DICT|DICT|SETITEMS?"
    "|GLOBAL|STACK_GLOBAL|REDUCE|BUILD"
)
_DTYPE_CODE = re.compile("b1|[iu][1248]|f[248]")


class _RefusedError(Exception):
    """Something in the pickle that no array needs."""


class _Record:
    """Stands for one thing NumPy's pickles name. It has no dictionary, and takes state only where a subclass does."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        raise _RefusedError(f"state for a {type(self).__name__}")


class _ArrayType(_Record):
    """`numpy.ndarray`, as an argument of `_reconstruct`; never called itself."""

    __slots__ = ()

    def __init__(self, *_: object) -> None:
        raise _RefusedError("a call of numpy.ndarray")


class _DType(_Record):
    """`numpy.dtype(code, align, copy)`, and its state that holds the byte order."""

    __slots__ = ("code", "order")

    def __init__(self, code: object, *_: object) -> None:
        if not isinstance(code, str) or not _DTYPE_CODE.fullmatch(code):
            raise _RefusedError(f"dtype {code!r}")
        self.code, self.order = code, "="

    def __setstate__(self, state: object) -> None:
        match state:
            case (int(), "<" | ">" | "|" | "=" as order, None, None, None, *_):
                self.order = order
            case _:
                raise _RefusedError("a dtype that is no plain number")

    def numpy(self) -> np.dtype[Any]:
        """The dtype described."""
        return np.dtype(self.code if self.order == "|" else self.order + self.code)


class _Array(_Record):
    """`_reconstruct(ndarray, (0,), b"b")`, and the state that holds shape, dtype and bytes."""

    __slots__ = ("dtype", "fortran", "raw", "shape")

    def __init__(self, kind: object, *_: object) -> None:
        if kind is not _ArrayType:
            raise _RefusedError("an array of another class")
        self.shape, self.dtype, self.fortran, self.raw = (0,), _DType("u1"), False, b""

    def __setstate__(self, state: object) -> None:
        match state:
            case (int(), tuple(shape), _DType() as dtype, bool(fortran), bytes(raw)):
                if not all(type(size) is int and size >= 0 for size in shape):
                    raise _RefusedError(f"an array of shape {shape!r}"[:80])
                self.shape, self.dtype, self.fortran, self.raw = shape, dtype, fortran, raw
            case _:
                raise _RefusedError("an array that is not plain bytes")

    def numpy(self) -> np.ndarray[Any, Any]:
        """The array described. Its bytes are those of the file."""
        dtype = self.dtype.numpy()
        if math.prod(self.shape) * dtype.itemsize != len(self.raw):
            raise _RefusedError(f"{len(self.raw)} bytes for an array of shape {self.shape}")
        flat = np.frombuffer(self.raw, dtype).astype(dtype.newbyteorder("="))
        return flat.reshape(self.shape, order="F" if self.fortran else "C")


class _Scalar(_Record):
    """`scalar(dtype, bytes)`."""

    __slots__ = ("dtype", "raw")

    def __init__(self, dtype: object, raw: object) -> None:
        if not isinstance(dtype, _DType) or not isinstance(raw, bytes):
            raise _RefusedError("a scalar that is no plain number")
        self.dtype, self.raw = dtype, raw

    def numpy(self) -> np.generic:
        """The scalar described."""
        (value,) = np.frombuffer(self.raw, self.dtype.numpy())
        assert isinstance(value, np.generic)
        return value


_NAMES: dict[tuple[str, str], type[_Record]] = {
    ("numpy", "ndarray"): _ArrayType,
    ("numpy", "dtype"): _DType,
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy.core.multiarray", "scalar"): _Scalar,
    ("numpy._core.multiarray", "scalar"): _Scalar,
}
"""All that may be named: NumPy 1's and NumPy 2's spelling."""


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str, /) -> Callable[..., object]:
        record = _NAMES.get((module, name))
        if record is None:
            raise _RefusedError(f"the name {module}.{name}")
        return record

    def persistent_load(self, pid: object, /) -> object:
        raise _RefusedError("a persistent id")


def _screen(data: bytes) -> None:
    for count, (opcode, argument, position) in enumerate(pickletools.genops(data)):
        if not _OPCODE.fullmatch(opcode.name):
            raise _RefusedError(f"opcode {opcode.name} at byte {position}")
        if opcode.name.endswith("BINPUT") and isinstance(argument, int) and argument > count:
            raise _RefusedError(f"memo index {argument} at byte {position}")


def _resolve(value: object, depth: int, budget: list[int]) -> object:
    """Builtin containers with arrays in place of records. `budget` ends what shared references would multiply."""
    budget[0] -= 1
    if depth < 0 or budget[0] < 0:
        raise _RefusedError("containers nested or shared too often")
    if isinstance(value, dict):
        if not all(isinstance(key, str | int) for key in value):
            raise _RefusedError("a dictionary key that is neither text nor an integer")
        return {key: _resolve(item, depth - 1, budget) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_resolve(item, depth - 1, budget) for item in value)
    if isinstance(value, _Array | _Scalar):
        return value.numpy()
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return value
    raise _RefusedError(f"a {getattr(value, '__name__', type(value).__name__)} where a value belongs")


def unpickle_arrays(data: bytes, where: str) -> object:
    """The arrays, numbers, texts and containers of a pickle.

    Raises ArtifactError, naming `where` and what, for everything else; nothing that the pickle names is imported.
    """
    if len(data) > MAX_BYTES:
        raise ArtifactError(f"{where}: got {len(data)} bytes, wanted at most {MAX_BYTES}")
    try:
        _screen(data)
        return _resolve(_Reader(io.BytesIO(data)).load(), MAX_DEPTH, [len(data)])
    except _RefusedError as error:
        raise ArtifactError(f"{where}: the pickle holds {error}; only plain NumPy arrays are read") from error
    except Exception as error:  # malformed bytes surface as nearly any exception
        raise ArtifactError(f"{where}: not a pickle of NumPy arrays ({error})") from error
