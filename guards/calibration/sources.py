"""Forget and retain sources: one reader for local files and hub data sets.

A source is written ``LOCATION[?KEY=VALUE[&KEY=LOW..HIGH]][#FIELD]``:

| part | meaning |
|---|---|
| LOCATION | a data file, a folder of them (`FOLDER[@SPLIT]`), or `hf:NAME[:CONFIG]@SPLIT` on the Hugging Face hub |
| ?KEY=VALUE | keep rows whose KEY equals VALUE: `mmlu_test.jsonl?subject=abstract_algebra` |
| ?KEY=LOW..HIGH | keep rows from LOW to HIGH (included; either may be left out): `mbpp.jsonl?task_id=511..974` |
| #FIELD | the field (column) that holds the text; without it the first of FIELDS that is present (`row_texts.py`) |

A location that exists is taken as it is written, so that names may hold `?` and `#`. In the other parts `%26` and the
like stand for characters that mean something. Bounds compare as numbers when bound and value both are, else as text. A
`.txt` file has one example a line and no fields. Blank texts are left out, and of texts that are
the same but for blanks around them the first is kept.
"""

import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from guards.calibration.data_files import format_of, read_file
from guards.calibration.data_folders import find_folder, read_folder
from guards.calibration.data_hub import read_hub
from guards.calibration.data_rows import DataRow
from guards.calibration.row_texts import TextField, pick_field
from guards.errors import DataError


@dataclass(frozen=True)
class Source:
    """Texts of one source after filtering, each once, in the order read. `name` holds no machine's path.

    `field`: where the texts were, None where nothing says it. `rows` had a text that is not blank, of which `repeats`
    were there before. `cut` texts were too long for the model, and are what fits of them.
    """

    name: str
    texts: tuple[str, ...]
    field: str | None = None
    rows: int | None = None
    repeats: int | None = None
    cut: int = 0

    @property
    def sha256(self) -> str:
        """Digest of exactly the texts used: over their JSON strings, one a line."""
        digest = hashlib.sha256()
        for text in self.texts:
            digest.update(json.dumps(text).encode() + b"\n")
        return digest.hexdigest()


@dataclass(frozen=True)
class Condition:
    """One row condition, both bounds included; "" is no bound, and equal bounds are equality."""

    key: str
    low: str
    high: str

    def holds(self, value: Any) -> bool:
        """Whether a row's value lies within the bounds."""
        return (self.low == "" or _order(self.low, value) <= 0) and (self.high == "" or _order(self.high, value) >= 0)


@dataclass(frozen=True)
class SourceSpec:
    """A parsed source."""

    location: str
    conditions: tuple[Condition, ...]
    field: str | None

    @property
    def is_hub(self) -> bool:
        """Whether the location is on the Hugging Face hub."""
        return self.location.startswith("hf:") and not os.path.exists(self.location)

    @property
    def has_fields(self) -> bool:
        """Whether rows have fields to choose from: lines of a text file have none."""
        return self.is_hub or format_of(Path(self.location))[0] != ".txt"

    def text_field(self, row: DataRow, field: str | None = None) -> TextField:
        """Where a row has its text: as the source says, as `field` does, or the first of FIELDS."""
        return pick_field(row, self.field or (field if self.has_fields else None))


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _order(bound: str, value: Any) -> int:
    """Sign of bound - value: as numbers when both are, else as text."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)  # a table's dates are no JSON
    left, right = _number(bound), _number(value)
    if left is not None and right is not None:
        return (left > right) - (left < right)
    return (bound > text) - (bound < text)


def _location(spec: str) -> str:
    """The longest part of a source, up to its end, a `?` or a `#`, that exists; else what stands before the first."""
    ends = [len(spec), *(mark.start() for mark in reversed(list(re.finditer("[?#]", spec))))]
    for end in ends:
        if os.path.exists(spec[:end]) or find_folder(spec[:end]) is not None:
            return spec[:end]
    return re.split("[?#]", spec, maxsplit=1)[0]


def parse_source(spec: str) -> SourceSpec:
    """Takes a source apart. Raises DataError naming the part that is malformed."""
    location = _location(spec)
    if not location:
        raise DataError(f"{spec!r}: got no file or data set, wanted LOCATION[?KEY=VALUE][#FIELD]")
    query, mark, field = spec[len(location) :].partition("#")
    if mark and not field:
        raise DataError(f"{spec}: got '#' without a field name, wanted #FIELD at the end")
    conditions = []
    for clause in query.removeprefix("?").split("&") if query else []:
        key, equals, value = clause.partition("=")
        if not (key and equals and value) or value == "..":
            raise DataError(f"{spec}: got condition {clause!r}, wanted KEY=VALUE or KEY=LOW..HIGH (%26 stands for &)")
        low, dots, high = value.partition("..")
        conditions.append(Condition(unquote(key), unquote(low), unquote(high if dots else value)))
    return SourceSpec(location, tuple(conditions), unquote(field) or None)


def _keep(row: DataRow, spec: SourceSpec) -> bool:
    for condition in spec.conditions:
        if condition.key not in row.values:
            found = ", ".join(sorted(row.values))
            raise DataError(f"{row.where}: got no key {condition.key!r} to filter by; found {found}")
    return all(condition.holds(row.values[condition.key]) for condition in spec.conditions)


def compared(text: str) -> str:
    """What texts are compared by. Many chat templates trim them, so that blanks around them make no other text."""
    return text.strip()


def distinct(texts: Iterable[str]) -> tuple[str, ...]:
    """The first of all that compare equal, as it is."""
    found: dict[str, str] = {}
    for text in texts:
        found.setdefault(compared(text), text)
    return tuple(found.values())


def seeded_rank(texts: Sequence[str], seed: int) -> list[int]:
    """Indices of the texts in an order fixed by seed and text alone, whatever order they came in."""
    keys = [hashlib.sha256(f"{seed}\n{text}".encode()).digest() for text in texts]
    return sorted(range(len(texts)), key=keys.__getitem__)


@dataclass(frozen=True)
class DataTable:
    """Rows of one source that meet its conditions, in the order read. `name` holds no machine's path."""

    name: str
    rows: tuple[DataRow, ...]
    spec: SourceSpec
    total: int
    """Rows before the conditions."""


class _Rows:
    """A source's rows that meet its conditions, one at a time, so that memory need not hold them.

    `total` counts those before the conditions, so far. Raises as `read_table` does.
    """

    def __init__(self, spec: str) -> None:
        self.spec = parse_source(spec)
        location, folder = self.spec.location, find_folder(self.spec.location)
        if self.spec.is_hub:
            name, self._rows = location, read_hub(location)
        else:
            if not self.spec.has_fields and (self.spec.conditions or self.spec.field):
                raise DataError(f"{spec}: a .txt file has no fields; drop the part after the file name")
            resolved = Path(location).resolve()
            name = f"{resolved.parent.name}/{resolved.name}"
            self._rows = read_file(Path(location)) if folder is None else read_folder(*folder)
        self.name, self.total = name + spec[len(location) :], 0

    def __iter__(self) -> Iterator[DataRow]:
        for row in self._rows:
            self.total += 1
            if _keep(row, self.spec):
                yield row
        if not self.total:
            raise DataError(f"{self.spec.location}: got no rows; wanted a source with at least one example")


def read_table(spec: str) -> DataTable:
    """Reads a source's rows whole, for what needs more than one field of them.

    Raises DataError on a missing, empty or malformed file (with the line), a missing key, and text that is not UTF-8.
    """
    rows = _Rows(spec)
    kept = tuple(rows)
    return DataTable(rows.name, kept, rows.spec, rows.total)


def read_source(spec: str, *, field: str | None = None, limit: int | None = None, seed: int = 0) -> Source:
    """Reads a source's texts.

    `field`: used where the source names none. `limit`: keep at most that many texts, drawn by `seed`.
    Raises what `read_table` raises, and DataError when no row is left.
    """
    if limit is not None and limit < 1:
        raise DataError(f"got limit {limit}, wanted at least 1")
    found = _Rows(spec)
    texts: dict[str, str] = {}
    used: dict[str, None] = {}
    rows, where = 0, None
    for row in found:
        where = found.spec.text_field(row, field) if where is None else where
        text = where.text(row)
        if compared(text):
            rows += 1
            texts.setdefault(compared(text), text)
            used.update(dict.fromkeys(where.parts(row)))
    if not texts:
        raise DataError(f"{spec}: got no example out of {found.total} rows; loosen the condition or check the field")
    kept_texts = tuple(texts.values())
    if limit is not None and limit < len(kept_texts):
        kept_texts = tuple(kept_texts[index] for index in sorted(seeded_rank(kept_texts, seed)[:limit]))
    return Source(found.name, kept_texts, " and ".join(used), rows, rows - len(texts))


def refuse_overlap(forget: Sequence[Source], retain: Sequence[Source]) -> None:
    """Raises DataError when a text is to be forgotten and retained at once: no threshold can serve both."""
    retained = {compared(text): source.name for source in retain for text in source.texts}
    shared = [(text, source.name) for source in forget for text in source.texts if compared(text) in retained]
    if shared:
        text, name = shared[0]
        raise DataError(
            f"{len(shared)} text(s) are in both the forget and the retain sources, first {text[:60]!r} in {name} and "
            f"{retained[compared(text)]}: remove them from one side"
        )
