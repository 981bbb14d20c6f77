"""Reads the tables beside this module: what is talked about, kept apart from how questions are made."""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).parent / "material"


@cache
def table(name: str) -> dict[str, Any]:
    """The TOML file `material/{name}.toml`."""
    return tomllib.loads((_FOLDER / f"{name}.toml").read_text(encoding="utf-8"))


@cache
def lexicon() -> tuple[dict[str, str], ...]:
    """One dictionary per meaning, keyed by language code."""
    header, *lines = (_FOLDER / "lexicon.tsv").read_text(encoding="utf-8").splitlines()
    codes = header.split("\t")
    return tuple(dict(zip(codes, line.split("\t"), strict=True)) for line in lines)
