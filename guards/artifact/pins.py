"""How an artifact is named: by its folder, and by the digest that it must have where whoever names it says so."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_MARK = "@sha256:"
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class ArtifactPath:
    """A folder, and the digest its artifact must have (64 hexadecimal digits), None for any."""

    folder: Path
    digest: str | None = None

    @classmethod
    def parse(cls, text: "str | Path | ArtifactPath") -> "ArtifactPath":
        """FOLDER or FOLDER@sha256:DIGEST. Raises ValueError for a digest that is none."""
        if isinstance(text, ArtifactPath):
            return text
        folder, mark, digest = str(text).rpartition(_MARK)
        if not mark:
            return cls(Path(text))
        if not folder or not _DIGEST.fullmatch(digest):
            raise ValueError(
                f"wanted FOLDER{_MARK}DIGEST with 64 digits 0-9 and a-f, as `skillguard inspect` prints them"
            )
        return cls(Path(folder), digest)

    def __str__(self) -> str:
        return str(self.folder) if self.digest is None else f"{self.folder}{_MARK}{self.digest}"


def shown_digest(digest: str) -> str:
    """A digest as it follows a folder's name in order to pin it."""
    return f"{_MARK[1:]}{digest}"


def vouched(pinned: bool, signed_by: Sequence[str]) -> str:
    """What says that an artifact is the one that was meant, as the end of a line; nothing where nothing does."""
    keys = ", ".join(f"{key[:16]}..." for key in signed_by)
    return (", pinned" if pinned else "") + (f", signed by {keys}" if keys else "")
