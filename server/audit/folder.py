"""The audit log's files: one is written, and another begun when it is large enough.

A file is named after the number of its first line, so that names sort as lines do and no file is ever renamed.
"""

import contextlib
import fcntl
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from server.audit.chain import BrokenLineError, Link, parsed, sealed
from server.errors import ConfigError

FILE_NAME = re.compile(r"audit-([0-9]{12})\.jsonl")
_TAIL_BYTES = 1 << 16
_LONGEST_LINE_BYTES = 16 << 20


def file_name(number: int) -> str:
    """Of the file that begins with this line."""
    return f"audit-{number:012d}.jsonl"


def is_held(path: Path) -> bool:
    """Whether a server writes there now. Looks and leaves all as it is; a held folder's end is not looked at.

    Raises ConfigError where a server that starts could not begin there, or go on.
    """
    if not path.is_dir():
        raise ConfigError(f"audit_dir {path}: got no such folder; make it, or name another")
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        raise ConfigError(f"audit_dir {path}: cannot be read and written; make it writable")
    try:
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            if not _may_be_had(folder):
                return True
            for name in reversed(_names(folder)):
                if not os.access(name, os.R_OK | os.W_OK, dir_fd=folder):
                    raise ConfigError(f"audit_dir {path}: {name}: cannot be read and written; make it writable")
                file = os.open(name, os.O_RDONLY, dir_fd=folder)
                try:
                    last, _ = _last_line(file, os.fstat(file).st_size)
                    if last is not None:
                        parsed(last)
                        return False
                except BrokenLineError as error:
                    raise _damaged(path, name, error) from error
                finally:
                    os.close(file)
            return False
        finally:
            os.close(folder)
    except OSError as error:
        raise ConfigError(f"audit_dir {path}: {error.strerror}; make it readable") from error


def _may_be_had(folder: int) -> bool:
    try:
        fcntl.flock(folder, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    fcntl.flock(folder, fcntl.LOCK_UN)
    return True


def _names(folder: int) -> list[str]:
    """Of its audit files, by the number of their first line."""
    return sorted(name for name in os.listdir(folder) if FILE_NAME.fullmatch(name))


def _damaged(path: Path, name: str, error: BrokenLineError) -> ConfigError:
    return ConfigError(
        f"audit_dir {path}: {name}: the last line cannot be gone on from: {error}; "
        "see `skillguard audit verify`, put the files away, and start with an empty folder"
    )


class AuditFolder:
    """One writer's hold on a folder of audit files. Used by one thread at a time."""

    def __init__(self, path: Path, max_bytes: int, *, fsync: bool) -> None:
        """Goes on with the chain that the folder holds.

        Raises ConfigError where the folder is not there (it is not made: on a disk that is not mounted it would be on
        another one), belongs to another server, cannot be written, or ends in a line that is damaged.
        """
        self.path = path
        self._max_bytes = max_bytes
        self._fsync = fsync
        self._file: int | None = None
        self._name = ""
        self._size = 0
        self.link = Link()
        self.cut_bytes = 0
        """Of a last line that was never finished, and is now gone: nobody was told that it was written."""
        try:
            self._folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise ConfigError(f"audit_dir {path}: {error.strerror}; make the folder, or name another") from error
        try:
            self._take()
        except BaseException:
            self.close()
            raise

    def _take(self) -> None:
        try:
            fcntl.flock(self._folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(
                f"audit_dir {self.path}: another process writes there; give each server a folder of its own"
            ) from error
        try:
            for name in reversed(_names(self._folder)):
                if self._continue(name):
                    break
            else:
                self._begin()
        except BrokenLineError as error:
            raise _damaged(self.path, name, error) from error
        except OSError as error:
            raise ConfigError(f"audit_dir {self.path}: {error.strerror}; make it writable") from error

    def _continue(self, name: str) -> bool:
        """Whether this file has a whole line, or would be the chain's first; then it is the one that is written."""
        file = os.open(name, os.O_RDWR | os.O_APPEND, dir_fd=self._folder)
        size = os.fstat(file).st_size
        last, end = _last_line(file, size)
        if end < size:
            self.cut_bytes += size - end
            os.ftruncate(file, end)
        if last is None:
            os.close(file)
            os.unlink(name, dir_fd=self._folder)  # empty now: its name may be that of another line
            return False
        self._file, self._name, self._size, self.link = file, name, end, parsed(last).link
        return True

    def append(self, records: Sequence[Mapping[str, object]]) -> None:
        """Adds all of them, or none. Raises OSError where they cannot be written; the next call tries again."""
        data, link = [], self.link
        for record in records:
            line, link = sealed(link, record)
            data.append(line)
        file = self._writable()
        try:
            _write(file, b"".join(data))
            if self._fsync:
                os.fsync(file)
        except OSError:
            self._take_back(file)
            raise
        self.link, self._size = link, os.fstat(file).st_size

    def _writable(self) -> int:
        """The file to write to: a new one where the last is full or gone. Raises OSError."""
        if not os.path.samestat(os.stat(self.path), os.fstat(self._folder)):
            raise OSError(0, "the folder is no longer the one that was opened")
        if self._file is not None and (self._size >= self._max_bytes or self._gone(self._file)):
            self._close_file()
        if self._file is None:
            self._begin()
        assert self._file is not None
        return self._file

    def _gone(self, file: int) -> bool:
        """Whether the name no longer leads to the file. What is behind its end shows as missing in the chain."""
        try:
            return not os.path.samestat(os.stat(self._name, dir_fd=self._folder), os.fstat(file))
        except FileNotFoundError:
            return True

    def _begin(self) -> None:
        name = file_name(self.link.lines)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL
        self._file, self._name, self._size = os.open(name, flags, 0o600, dir_fd=self._folder), name, 0
        if self._fsync:
            os.fsync(self._folder)

    def _take_back(self, file: int) -> None:
        """A line that was written in part must not stand before the next. Where it cannot go, its file is given up."""
        try:
            os.ftruncate(file, self._size)
        except OSError:
            self._close_file()

    def _close_file(self) -> None:
        if self._file is not None:
            file, self._file = self._file, None
            with contextlib.suppress(OSError):
                os.close(file)

    def close(self) -> None:
        """Gives the folder up. Safe to call twice."""
        self._close_file()
        if self._folder >= 0:
            os.close(self._folder)
            self._folder = -1


def _write(file: int, data: bytes) -> None:
    while data:
        data = data[os.write(file, data) :]


def _last_line(file: int, size: int) -> tuple[bytes | None, int]:
    """The last line that has a line break, without it, and where it ends in the file."""
    span = _TAIL_BYTES
    while True:
        start = max(0, size - span)
        tail = os.pread(file, size - start, start)
        end = tail.rfind(b"\n")
        before = tail.rfind(b"\n", 0, max(end, 0))
        if end >= 0 and (before >= 0 or start == 0):
            return tail[before + 1 : end], start + end + 1
        if start == 0:
            return None, 0
        if span > _LONGEST_LINE_BYTES:
            raise BrokenLineError(f"it is longer than {_LONGEST_LINE_BYTES} bytes")
        span *= 4
