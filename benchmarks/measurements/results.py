"""Reading result files."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = dict[str, Any]


@dataclass(frozen=True)
class Results:
    """The repository whose result files are shown."""

    root: Path

    @property
    def folder(self) -> Path:
        """Where the result files lie."""
        return self.root / "benchmarks" / "results"

    def read(self, name: str) -> dict[str, Any]:
        """The file `<name>.json`, whole."""
        found: dict[str, Any] = json.loads((self.folder / f"{name}.json").read_text(encoding="utf-8"))
        return found

    def read_if_there(self, name: str) -> dict[str, Any] | None:
        """The file `<name>.json`, whole, if there is one."""
        return self.read(name) if (self.folder / f"{name}.json").is_file() else None

    def models(self, name: str) -> list[str]:
        """The models of which there is a file `<name>.<model>.json`, of a finished run."""
        found = [
            path.name.removeprefix(f"{name}.").removesuffix(".json") for path in self.folder.glob(f"{name}.*.json")
        ]
        return sorted(model for model in found if not model.endswith(".partial"))

    def manifest(self, guard: str) -> dict[str, Any]:
        """The manifest of a guard of the demo, which says what it was fitted with."""
        path = self.root / "artifacts" / "demo" / "guards" / guard / "manifest.json"
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found


def only(rows: Sequence[Row], **fields: str) -> Row:
    """The one row with these values."""
    found = matching(rows, **fields)
    if len(found) != 1:
        raise LookupError(f"{len(found)} rows with {fields}, wanted 1: was the result file cut or renamed?")
    return found[0]


def matching(rows: Sequence[Row], **fields: str) -> list[Row]:
    """All rows with these values."""
    return [row for row in rows if all(row[name] == value for name, value in fields.items())]
