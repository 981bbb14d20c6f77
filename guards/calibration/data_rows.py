"""Rows of a data file or hub data set, each with the place it came from for error messages."""

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guards.errors import DataError

TEXT_FIELD = "text"
"""The field under which a `.txt` line, or a bare string in JSON, is kept."""


@dataclass(frozen=True)
class DataRow:
    """One row: its values by field, and its place, "file:line"."""

    where: str
    values: dict[str, Any]


def _row(where: str, value: Any) -> DataRow:
    if isinstance(value, str):
        return DataRow(where, {TEXT_FIELD: value})
    if isinstance(value, dict):
        return DataRow(where, value)
    raise DataError(f"{where}: got a {type(value).__name__}, wanted an object or a string")


def _jsonl(path: Path, content: str) -> Iterator[DataRow]:
    for number, line in enumerate(content.split("\n"), start=1):
        if line.strip():
            where = f"{path}:{number}"
            try:
                value = json.loads(line)
            except ValueError as error:
                raise DataError(f"{where}: not valid JSON ({error})") from error
            yield _row(where, value)


def _json(path: Path, content: str) -> Iterator[DataRow]:
    try:
        values = json.loads(content)
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON ({error}); one object a line is a .jsonl file") from error
    if not isinstance(values, list):
        raise DataError(f"{path}: got a {type(values).__name__}, wanted a list of objects or strings")
    for index, value in enumerate(values):
        yield _row(f"{path}[{index}]", value)


def _csv(path: Path, content: str) -> Iterator[DataRow]:
    reader = csv.reader(io.StringIO(content, newline=""), strict=True)
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
                raise DataError(f"{where}: got {len(cells)} cells, wanted {len(header)} as in the header")
            yield DataRow(where, dict(zip(header, cells, strict=True)))
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: not valid CSV ({error})") from error


def _txt(path: Path, content: str) -> Iterator[DataRow]:
    for number, line in enumerate(content.split("\n"), start=1):
        if line.strip():
            yield DataRow(f"{path}:{number}", {TEXT_FIELD: line.strip()})


_READERS = {".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".txt": _txt}
SUFFIXES = tuple(_READERS)


def read_file(path: Path) -> Iterator[DataRow]:
    """Rows of a local file. Raises DataError naming file and line."""
    reader = _READERS.get(path.suffix)
    if reader is None:
        raise DataError(f"{path}: got suffix {path.suffix!r}, wanted one of {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise DataError(f"{path}: got no such file")
    data = path.read_bytes()
    if not data.strip():
        raise DataError(f"{path}: the file is empty")
    try:
        content = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}:{line}: not UTF-8 (byte 0x{data[error.start]:02x}); convert the file") from error
    return reader(path, content)


def read_hub(location: str) -> Iterator[DataRow]:
    """Rows of `hf:NAME[:CONFIG]@SPLIT`. Raises DataError when the library, data set or split is missing."""
    address, at, split = location.removeprefix("hf:").partition("@")
    name, _, config = address.partition(":")
    if not (name and at and split):
        raise DataError(f"{location}: wanted hf:NAME[:CONFIG]@SPLIT, for example hf:openai/gsm8k:main@train")
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            f"{location}: hub data sets need the datasets package: pip install 'skillguard[datasets]'"
        ) from error
    try:
        loaded = datasets.load_dataset(name, config or None, split=split)
    except Exception as error:  # the library raises whatever its transports raise
        raise DataError(f"{location}: the data set cannot be loaded ({error})") from error
    for index, values in enumerate(loaded):
        yield _row(f"{location}[{index}]", dict(values))
