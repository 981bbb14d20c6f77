"""How every benchmark reports: a result file as measured, and one JSON object as the last line printed."""

import json
import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
UNFINISHED = Path(__file__).resolve().parent / "unfinished"
"""What runs keep, so that the same command goes on after a stop."""


def environment() -> dict[str, str]:
    """Versions that a figure depends on."""
    packages = {name: metadata.version(name) for name in ("torch", "transformers")}
    found = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=RESULTS.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return {"python": platform.python_version(), "commit": found.stdout.strip() or "unknown", **packages}


def _shown(argument: str) -> str:
    """An argument as others can read it: of a folder of this machine the last name."""
    return f".../{Path(argument).name}" if Path(argument).is_absolute() else argument


def _write(path: Path, rows: list[dict[str, Any]], more: dict[str, Any]) -> None:
    module = sys.modules["__main__"].__spec__
    name = module.name.removesuffix(".__main__") if module else f"benchmarks.{path.name.split('.')[0]}"
    command = shlex.join(["python", "-m", name, *map(_shown, sys.argv[1:])])
    record = {"command": command, "environment": environment(), **more, "rows": rows}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def keep(name: str, rows: list[dict[str, Any]], **more: Any) -> None:
    """Writes what a long run has so far as `results/<name>.partial.json`, which says so; `publish` removes it."""
    _write(RESULTS / f"{name}.partial.json", rows, {"complete": False, **more})


def kept(name: str) -> list[dict[str, Any]]:
    """The rows that a run which was stopped kept; none without."""
    path = RESULTS / f"{name}.partial.json"
    return list(json.loads(path.read_text(encoding="utf-8"))["rows"]) if path.is_file() else []


def publish(name: str, rows: list[dict[str, Any]], **more: Any) -> None:
    """Writes `results/<name>.json` and prints the figures as one JSON line, the last."""
    amend(name, rows, **more)
    (RESULTS / f"{name}.partial.json").unlink(missing_ok=True)


def amend(name: str, rows: list[dict[str, Any]], **more: Any) -> None:
    """As `publish`, of a run of some rows alone: what another one kept stays."""
    _write(RESULTS / f"{name}.json", rows, more)
    print(json.dumps({"rows": rows, **more}, ensure_ascii=False))
