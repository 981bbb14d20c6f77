"""What a person is shown of a calibration."""

from dataclasses import dataclass

from guards.artifact.manifest import Rate


@dataclass(frozen=True)
class ShownTable:
    """A table, cells as text."""

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str | None = None


def interval_text(rate: Rate) -> str:
    """A rate with its interval."""
    return f"{rate.rate:.3f} [{rate.low:.3f} {rate.high:.3f}]"
