"""What a person is shown of a calibration."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ShownTable:
    """A table, cells as text."""

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str | None = None
