"""Rows of local data files, by their names' endings: `.jsonl`, `.csv` and the like, each also compressed."""

import bz2
import csv
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from guards.calibration.data_rows import TEXT_FIELD, DataRow, make_row
from guards.errors import DataError

PYARROW = "pip install 'skillguard[parquet]'"
_CELL = 2**31 - 1
"""Characters of a CSV cell: Python's own limit is 131072, less than a document has."""
_DIGITS = 4300
"""Of the largest number that Python reads from text."""
_DELIMITERS = (",", ";", "\t")


def _whole_number(digits: str) -> int | str:
    """A number beyond Python's limit is kept as text: an id may have any length."""
    return int(digits) if len(digits) <= _DIGITS else digits


def _parse_json(text: str) -> Any:
    return json.loads(text, parse_int=_whole_number)


def _jsonl(path: Path, content: str) -> Iterator[DataRow]:
    for number, line in enumerate(content.split("\n"), start=1):
        if line.strip():
            where = f"{path}:{number}"
            try:
                value = _parse_json(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{where}: not valid JSON ({error})") from error
            yield make_row(where, value)


def _json(path: Path, content: str) -> Iterator[DataRow]:
    try:
        values = _parse_json(content)
    except json.JSONDecodeError as error:
        if error.msg != "Extra data":
            raise DataError(f"{path}: not valid JSON ({error})") from error
        yield from _jsonl(path, content)  # an object a line, as many data sets are published
        return
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(values, list):
        raise DataError(f"{path}: got a {type(values).__name__}, wanted a list of objects or strings")
    for index, value in enumerate(values):
        yield make_row(f"{path}[{index}]", value)


def _cells(content: str, delimiter: str) -> Any:
    csv.field_size_limit(_CELL)
    return csv.reader(io.StringIO(content, newline=""), strict=True, delimiter=delimiter)


def _delimiter(content: str) -> str:
    """What the first line has most of, outside of quotes; a comma where it has none of any."""

    def columns(delimiter: str) -> int:
        try:
            return len(next(_cells(content, delimiter), ()))
        except csv.Error:
            return 0

    return max(_DELIMITERS, key=columns)


def _csv(path: Path, content: str) -> Iterator[DataRow]:
    yield from _separated(path, content, _delimiter(content))


def _tsv(path: Path, content: str) -> Iterator[DataRow]:
    yield from _separated(path, content, "\t")


def _separated(path: Path, content: str, delimiter: str) -> Iterator[DataRow]:
    reader = _cells(content, delimiter)
    try:
        header = next(reader, None)
        if header is None:
            return
        if len(set(header)) != len(header):
            raise DataError(f"{path}:1: a column is named twice: {', '.join(header)}")
        for cells in reader:
            where = f"{path}:{reader.line_num}"
            if not cells:
                continue
            if len(cells) != len(header):
                raise DataError(
                    f"{where}: got {len(cells)} cells parted by {delimiter!r}, wanted {len(header)} as in the header "
                    f"({', '.join(header)[:80]}): quote a cell that holds {delimiter!r}"
                )
            yield make_row(where, dict(zip(header, cells, strict=True)))
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: not valid CSV ({error})") from error


def _txt(path: Path, content: str) -> Iterator[DataRow]:
    for number, line in enumerate(content.split("\n"), start=1):
        if line.strip():
            yield DataRow(f"{path}:{number}", {TEXT_FIELD: line.strip()})


_TEXT_READERS: dict[str, Callable[[Path, str], Iterator[DataRow]]] = {
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _tsv,
    ".txt": _txt,
}
_ARROW = (".parquet", ".arrow")
_OPENERS: dict[str, Callable[[Path], Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_ZSTD = ".zst"
SUFFIXES = (*_TEXT_READERS, *_ARROW)
COMPRESSIONS = (*_OPENERS, _ZSTD)


def format_of(path: Path) -> tuple[str, str]:
    """The suffix that says a file's format, and that of its compression, both in lower case; "" for what it lacks."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    packed = suffixes.pop() if suffixes and suffixes[-1] in COMPRESSIONS else ""
    suffix = suffixes[-1] if suffixes else ""
    return (suffix if suffix in SUFFIXES and not (packed and suffix in _ARROW) else "", packed)


def _pyarrow(path: Path) -> Any:
    try:
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError as error:
        raise DataError(f"{path}: {path.suffix} files need the pyarrow package: {PYARROW}") from error
    return pyarrow


def _unpacked(path: Path, packed: str) -> bytes:
    if packed == _ZSTD:
        arrow = _pyarrow(path)
        try:
            with arrow.input_stream(str(path), compression="zstd") as file:
                return bytes(file.read())
        except (arrow.ArrowException, OSError) as error:
            raise DataError(f"{path}: cannot be decompressed ({error}); write the file again") from error
    try:
        if not packed:
            return path.read_bytes()
        with _OPENERS[packed](path) as file:
            return bytes(file.read())
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        doing = "decompressed" if packed else "read"
        raise DataError(f"{path}: cannot be {doing} ({error}); write the file again") from error


def _tables(path: Path, arrow: Any, suffix: str) -> Iterator[Any]:
    if suffix == ".parquet":
        with arrow.parquet.ParquetFile(path) as file:
            yield from file.iter_batches()
    else:
        with arrow.memory_map(str(path)) as file, arrow.ipc.open_stream(file) as batches:
            yield from batches


def _arrow_rows(path: Path, suffix: str) -> Iterator[DataRow]:
    arrow, index = _pyarrow(path), 0
    try:
        for batch in _tables(path, arrow, suffix):
            for values in batch.to_pylist():
                yield make_row(f"{path}[{index}]", values)
                index += 1
    except (arrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a valid {suffix} file ({error}); write the file again") from error


def read_file(path: Path) -> Iterator[DataRow]:
    """Rows of a local file. Raises DataError naming file and line."""
    suffix, packed = format_of(path)
    if not suffix:
        raise DataError(
            f"{path}: got suffix {''.join(path.suffixes[-2:])!r}, wanted one of {', '.join(SUFFIXES)}; all but the "
            f"last two may be compressed ({', '.join(COMPRESSIONS)})"
        )
    if not path.is_file():
        where = "" if path.is_absolute() else f" in {Path.cwd()}"
        raise DataError(f"{path}: got no such file{where}, wanted a file of examples; correct the path")
    if suffix in _ARROW:
        return _arrow_rows(path, suffix)
    data = _unpacked(path, packed)
    if not data.strip():
        raise DataError(f"{path}: the file is empty")
    try:
        content = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}:{line}: not UTF-8 (byte 0x{data[error.start]:02x}); convert the file") from error
    return _TEXT_READERS[suffix](path, content)
