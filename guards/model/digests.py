"""Digests of files that were read before, so that a start need not read gigabytes twice.

A digest is believed as long as the file has the same path, device, inode, size, and times of its last change (mtime)
and of the last change of anything about it (ctime, which no program can set). So it is only as good as these times: a
file system that is shared between machines may tell old ones, and whoever can write to the raw disk, or set the clock,
can forge them. Nothing is believed that others than this user could have written.
"""

import hashlib
import json
import logging
import os
import stat
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

logger = logging.getLogger("skillguard.digests")

_SETTLED_SECONDS = 2.0
"""A file that changed later than this before it was read may change again without another time to show for it."""
_MAX_ENTRY_BYTES = 64 << 10


def cache_folder() -> Path:
    """Where a user's digests are kept: $XDG_CACHE_HOME/skillguard/digests, by default under ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "skillguard" / "digests"


def state_of(found: os.stat_result) -> dict[str, int]:
    """What changes with a file's bytes."""
    fields = ("st_dev", "st_ino", "st_size", "st_mtime_ns", "st_ctime_ns")
    return {field.removeprefix("st_"): getattr(found, field) for field in fields}


class DigestCache:
    """One small file for each file that was read. Where it cannot be kept or believed, it is as if it were empty."""

    def __init__(self, folder: Path | None = None, clock: Callable[[], float] = time.time) -> None:
        """`folder`: by default `cache_folder()`. `clock` gives seconds, as file times have them."""
        self._folder = folder or cache_folder()
        self.clock = clock

    def get(self, path: Path, found: os.stat_result) -> str | None:
        """The SHA-256 of an open file that is now as it was when that was computed, else None."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            folder = self._opened(make=False)
            try:
                entry = json.loads(self._read(self._name(path), folder))
            finally:
                os.close(folder)
            if entry["path"] == str(path) and entry["state"] == state_of(found):
                digest = str(entry["sha256"])
                return digest if len(digest) == 64 else None
        return None

    def put(self, path: Path, found: os.stat_result, digest: str, begun: float) -> None:
        """Keeps the digest of a file as it was when reading it was begun, unless it had changed only just then."""
        if begun - max(found.st_mtime, found.st_ctime) < _SETTLED_SECONDS:
            return
        entry = json.dumps({"path": str(path), "state": state_of(found), "sha256": digest})
        try:
            os.close(self._opened(make=True))
            descriptor, scratch = tempfile.mkstemp(dir=self._folder)  # mode 0600
            with os.fdopen(descriptor, "w") as file:
                file.write(entry)
            os.replace(scratch, self._folder / self._name(path))
        except OSError as error:
            logger.info("digests are not kept in %s (%s): the next start reads the weights again", self._folder, error)

    @staticmethod
    def _name(path: Path) -> str:
        return hashlib.sha256(os.fsencode(path)).hexdigest() + ".json"

    def _opened(self, *, make: bool) -> int:
        """The folder's descriptor. Raises OSError where it is not there, or others may write to it."""
        if make:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            self._require_own(os.fstat(descriptor))
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _read(self, name: str, folder: int) -> bytes:
        with os.fdopen(os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW, dir_fd=folder), "rb") as file:
            found = os.fstat(file.fileno())
            self._require_own(found)
            if not stat.S_ISREG(found.st_mode) or found.st_size > _MAX_ENTRY_BYTES:
                raise OSError(f"{name} is no entry")
            return file.read()

    def _require_own(self, found: os.stat_result) -> None:
        if found.st_uid != os.geteuid() or found.st_mode & 0o022:
            logger.warning("%s: others may write there, so no digest in it is believed; chmod 700 it", self._folder)
            raise PermissionError("others may write there")
