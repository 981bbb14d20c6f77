"""Texts that a guard must leave alone whatever its skill is: shipped, since every calibration needs them.

They are look-alikes (numbers and stories without mathematics, code words without code), everyday requests, passages,
and what stands around requests: system prompts, conversations, tools. Beside them are prompts that a model cannot
answer or refuses, to which LUNAR redirects. All were written for this package.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from guards.calibration.sources import Source

FOLDER = Path(__file__).resolve().parent / "material"
LOOKALIKES = ("numbers", "stories", "code_words", "everyday", "passages")
"""The files that are retain sources."""

Which = Literal["all", "english", "none"]
Reference = Literal["unanswerable", "refused"]
Messages = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Material:
    """Retain sources, and surroundings of requests."""

    sources: tuple[Source, ...] = ()
    system_prompts: tuple[str, ...] = ()
    chats: tuple[Messages, ...] = ()
    tools: tuple[tuple[Sequence[Mapping[str, Any]], Messages], ...] = ()


@cache
def read_material(which: Which) -> Material:
    """All of it, what is English and nothing else, or nothing: for a guard of a language, of which some of these texts
    are. Rows of "mul" quote another language.
    """
    if which == "none":
        return Material()

    return Material(
        tuple(_texts(name, which) for name in LOOKALIKES),
        tuple(row["text"] for row in _rows("system_prompts", which)),
        tuple(row["messages"] for row in _rows("chats", which)),
        tuple((row["tools"], row["messages"]) for row in _rows("tools", which)),
    )


def read_references(name: Reference) -> Source:
    """English prompts that a model cannot answer, since they are about what does not exist, or that it refuses."""
    return _texts(name, "english")


def _rows(name: str, which: Which) -> list[dict[str, Any]]:
    lines = (FOLDER / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [row for row in map(json.loads, lines) if which == "all" or row["language"] == "en"]


def _texts(name: str, which: Which) -> Source:
    return Source(f"skillguard/{name}", tuple(row["text"] for row in _rows(name, which)))
