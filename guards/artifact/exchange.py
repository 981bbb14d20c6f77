"""Folders that are replaced whole, and read whole while somebody replaces them.

A writer fills a folder beside the target and swaps the two names in one step. A reader holds the folder that it opened,
so both of its files are of one version whatever the name means by then.
"""

import ctypes
import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from guards.errors import ArtifactError

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


@dataclass(frozen=True)
class OpenFolder:
    """One version of a folder: the files that were asked for, open, and the names of all that lies in it."""

    files: Mapping[str, BinaryIO]
    names: tuple[str, ...]


def refuse_strays(folder: Path, owned: Collection[str], what: str) -> None:
    """Raises ArtifactError when a folder holds anything but these files: replacing it would remove that too."""
    strays = sorted(entry.name for entry in folder.iterdir() if entry.name not in owned or not entry.is_file())
    if strays:
        raise ArtifactError(
            f"{folder} holds {what} and also {strays[0]!r}, which replacing it would remove: "
            "move that away or choose another output folder"
        )


def replace_file(path: Path, data: bytes) -> None:
    """Writes one file in one step, on disk once this returns. On an OSError what was there is still there."""
    descriptor, scratch = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(scratch, 0o644)
        os.replace(scratch, path)
    except BaseException:
        os.unlink(scratch)
        raise
    _sync(path.parent)


def write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Writes a folder of these files in one step; one that is there is replaced, whatever it holds.

    `folder` is free of links. On an OSError what was there is still there.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        for name, data in files.items():
            with open(scratch / name, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        scratch.chmod(0o755)
        _sync(scratch)
        _put(scratch, folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def open_folder(folder: Path, names: Sequence[str], optional: Collection[str] = ()) -> Iterator[OpenFolder]:
    """Opens these regular files of a folder, all of one version of it, and those of `optional` that it has.

    A version that is removed before its files are open is let go for the one that took its place. Raises ArtifactError
    when the folder or a file is not there or cannot be opened.
    """
    with ExitStack() as stack:
        opened: OpenFolder | None = None
        while opened is None:
            try:
                opened = _opened(folder, names, optional, stack)
            except FileNotFoundError as error:
                within = sorted(path.parent.name for path in folder.glob(f"*/{error.filename}"))
                meant = f": name one of those in it, such as {folder / within[0]}" if within else ""
                raise ArtifactError(
                    f"{folder}: got no file {error.filename!r}; an artifact is a folder that has one{meant}"
                ) from error
            except OSError as error:
                raise ArtifactError(f"{folder}: cannot be read ({error.strerror})") from error
        yield opened


def _put(scratch: Path, folder: Path) -> None:
    """Gives `scratch` the name of `folder`. What a reader found under that name is then at `scratch`."""
    retired = _retired(folder)
    if not folder.exists() or not _exchange(scratch, folder):
        if folder.exists():
            shutil.rmtree(retired, ignore_errors=True)  # of a writer that died; with `folder` there nobody reads it
            folder.rename(retired)
        try:
            scratch.rename(folder)
        except OSError:
            if retired.exists():
                retired.rename(folder)
            raise
        if retired.exists():
            retired.rename(scratch)  # not removed where a reader looks: it would find half of it
    _sync(folder.parent)


def _retired(folder: Path) -> Path:
    """Where a folder waits for its successor, on systems that cannot swap two names in one step."""
    return folder.with_name(f".{folder.name}-old")


def _exchange(one: Path, other: Path) -> bool:
    """Swaps two absolute paths in one step. False, with nothing done, where the system or the disk cannot."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)  # Linux with glibc 2.28 or newer
    if renameat2 is None:
        return False
    return bool(renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _opened(folder: Path, names: Sequence[str], optional: Collection[str], stack: ExitStack) -> OpenFolder | None:
    """The files, which `stack` closes, or None when another folder took this one's name meanwhile."""
    place, descriptor = _descriptor(folder)
    try:
        listed = tuple(os.listdir(descriptor))
        wanted = [*names, *(name for name in optional if name in listed)]
        return OpenFolder({name: stack.enter_context(_open_regular(name, descriptor)) for name in wanted}, listed)
    except FileNotFoundError:
        if _is_at(place, descriptor):
            raise
        return None
    finally:
        os.close(descriptor)


def _descriptor(folder: Path) -> tuple[Path, int]:
    """The folder, or the one that waits for its successor, and where it was found. Raises ArtifactError for none."""
    for place in (folder, _retired(folder), folder):  # again: the successor may have come between the two looks
        try:
            return place, os.open(place, os.O_RDONLY | os.O_DIRECTORY)
        except (FileNotFoundError, NotADirectoryError):
            continue
    raise ArtifactError(f"{folder}: got no such folder; wanted an artifact (manifest.json, tensors.safetensors)")


def _open_regular(name: str, folder: int) -> BinaryIO:
    """A file of an open folder. Raises FileNotFoundError when there is none, or a pipe, a folder or a device."""
    descriptor = os.open(name, os.O_RDONLY | os.O_NONBLOCK, dir_fd=folder)  # a pipe would wait for its writer
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise FileNotFoundError(errno.ENOENT, "no regular file", name)
    return os.fdopen(descriptor, "rb")


def _is_at(place: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(place), os.fstat(descriptor))
    except FileNotFoundError:
        return False
