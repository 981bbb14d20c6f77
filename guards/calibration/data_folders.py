"""Folders of data files: `FOLDER[@SPLIT]`. Which files are meant is not guessed where there are several answers."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from guards.calibration.data_files import SUFFIXES, format_of, read_file
from guards.calibration.data_rows import DataRow
from guards.errors import DataError

_NO_DATA = re.compile(
    r"(readme|licen[cs]e|changelog|requirements)\b.*|(dataset_infos?|dataset_dict|state|metadata)\.json", re.IGNORECASE
)
_SPLIT = re.compile(r"(?:^|[^a-z0-9])(train|test|validation|valid|val|dev)(?=$|[^a-z])", re.IGNORECASE)


def find_folder(location: str) -> tuple[Path, str] | None:
    """The folder of `FOLDER[@SPLIT]` and its split ("" for none); None where there is no such folder."""
    if os.path.isdir(location):
        return Path(location), ""
    name, _, split = location.rpartition("@")
    return (Path(name), split) if re.fullmatch(r"[\w.-]+", split) and os.path.isdir(name) else None


def read_folder(folder: Path, split: str) -> Iterator[DataRow]:
    """Rows of a folder's data files, by their names; of one split where it has several.

    A split is a word such as `train` in a file's or subfolder's name. Raises DataError where the folder has no data
    file, or several splits of which none was named, or data in several subfolders.
    """
    files = _data_files(folder)
    if not files:
        raise DataError(f"{folder}: got a folder without a data file, wanted one of {', '.join(SUFFIXES)}")
    splits = {path: _split_of(path.relative_to(folder)) for path in files}
    named = sorted({each for each in splits.values() if each})
    if split:
        files = [path for path in files if splits[path] == split.lower()]
        if not files:
            found = ", ".join(named) or "none"
            raise DataError(f"{folder}@{split}: got no file of split {split!r}; found {found}")
    elif len(named) > 1:
        raise DataError(f"{folder}: holds the splits {', '.join(named)}: name one, such as {folder}@{named[0]}")
    parents = sorted({str(path.parent) for path in files})
    if len(parents) > 1:
        raise DataError(f"{folder}: holds data in {', '.join(parents)}: name one of these folders")
    return (row for path in files for row in read_file(path))


def _data_files(folder: Path) -> list[Path]:
    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and format_of(path)[0]
        and not _NO_DATA.fullmatch(path.name)
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]


def _split_of(path: Path) -> str:
    """The last such word: of the file's own name where it has one, else of the folder nearest to it."""
    for part in reversed(path.parts):
        if found := _SPLIT.findall(part):
            return str(found[-1]).lower()
    return ""
