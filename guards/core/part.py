"""What a guard scores separately."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """One separately scored piece of a guard: a cube's prompt frame, or "" for a guard of one piece."""

    label: str
    layer: int
