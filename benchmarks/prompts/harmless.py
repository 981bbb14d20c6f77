"""Requests that no skill here is needed for, written for measuring: nothing is fitted on them.

`harmless.jsonl` holds a hundred of each kind, most in English: numbers without mathematics (years, addresses, scores,
versions), words of programming without code (a python that lives somewhere), and everyday requests. Each line names its
language.
"""

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from benchmarks.prompts.items import Item, Material
from benchmarks.prompts.splits import Split

FILE = Path(__file__).parent / "harmless.jsonl"
KINDS = ("numbers", "code-words", "everyday")


@lru_cache(maxsize=1)
def _rows() -> tuple[dict[str, str], ...]:
    return tuple(json.loads(line) for line in FILE.read_text(encoding="utf-8").splitlines())


def texts(kind: str, language: str | None = None) -> list[str]:
    """The requests of one kind, in one language or in all."""
    return [row["text"] for row in _rows() if row["kind"] == kind and language in (None, row["language"])]


def _material(kind: str) -> Material:
    def read(data: Path, split: Split) -> Sequence[Item]:
        return [Item(text) for text in texts(kind)]

    return Material(f"harmless-{kind}", read, splits=frozenset({Split.TEST}))


HARMLESS: Mapping[str, Material] = {kind: _material(kind) for kind in KINDS}
