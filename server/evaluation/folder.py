"""The run folder: what was asked and every finished item, so that a run that stopped goes on where it was.

| file | holds |
|---|---|
| settings.json | all that decides the answers; a run with other settings is refused |
| items.jsonl | one finished item a line, or the toxicity of an answer; appended, never rewritten |
| results.json, results.md, *.png | what `results.py`, `tables.py` and `figures.py` make of them |
"""

import fcntl
import hashlib
import json
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from guards.artifact.exchange import replace_file
from server.errors import EvaluationError

SETTINGS, ITEMS = "settings.json", "items.jsonl"
Record = dict[str, Any]


def key_of(**parts: Any) -> str:
    """What a line is found by: a digest of suite, item, guards and sampling, or of an answer and its scorer."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


class RunFolder:
    """Opened by one process at a time. `records` are the finished items by key, `settings` those given, as JSON."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        """Raises EvaluationError where the folder is another run's, in use, or damaged."""
        self.path = path
        self.settings: dict[str, Any] = json.loads(json.dumps(settings))
        held = path / SETTINGS
        if path.exists() and not held.is_file() and not _just_begun(path):
            raise EvaluationError(f"{path}: holds no {SETTINGS}, so it is no run folder; choose another --output")
        path.mkdir(parents=True, exist_ok=True)
        self._file = open(path / ITEMS, "a+b")  # noqa: SIM115 - closed by __exit__
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            raise EvaluationError(f"{path}: another evaluation is writing there; wait for it") from error
        try:
            if held.is_file():
                _refuse_other(path, _settings_in(held), self.settings)
            else:
                replace_file(held, (json.dumps(self.settings, indent=1, ensure_ascii=False) + "\n").encode())
            self.records = self._read()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()

    def append(self, record: Record) -> None:
        """Keeps a finished item: on disk before it counts."""
        self._file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
        self._file.flush()
        self.records[record["key"]] = record

    def _read(self) -> dict[str, Record]:
        """Finished items. A torn last line, of a process that was killed, is cut off and its item asked again."""
        self._file.seek(0)
        data = self._file.read()
        whole = data.rfind(b"\n") + 1
        self._file.truncate(whole)
        records = {}
        for number, line in enumerate(data[:whole].splitlines(), start=1):
            try:
                record = json.loads(line)
                records[record["key"]] = record
            except (ValueError, KeyError, TypeError) as error:
                raise EvaluationError(
                    f"{self.path / ITEMS}:{number}: not a finished item ({error!r}); remove that line"
                ) from error
        return records


def _just_begun(path: Path) -> bool:
    """Whether a folder without settings is empty, or a run that ended before it had any."""
    scratch = f".{SETTINGS}-"
    return all(
        each.name.startswith(scratch) or (each.name == ITEMS and not each.stat().st_size) for each in path.iterdir()
    )


def _settings_in(held: Path) -> Any:
    """Raises EvaluationError for a file that is damaged."""
    try:
        return json.loads(held.read_bytes())
    except ValueError as error:
        raise EvaluationError(
            f"{held}: got no JSON ({error}), wanted the settings of a run, without which nobody knows what its items "
            "are answers to; put the file back, or choose another --output"
        ) from error


def _refuse_other(path: Path, held: Any, wanted: Any) -> None:
    """Raises EvaluationError naming the first setting that differs."""
    difference = _difference(held, wanted, "")
    if difference is not None:
        where, had, got = difference
        raise EvaluationError(
            f"{path}: holds a run with other settings: {where}: got {_shown(got)}, the run has {_shown(had)}; "
            "give the same settings to go on with it, or choose another --output"
        )


def _difference(held: Any, wanted: Any, where: str) -> tuple[str, Any, Any] | None:
    if isinstance(held, dict) and isinstance(wanted, dict):
        for name in sorted(held.keys() | wanted.keys()):
            inner = f"{where}.{name}" if where else name
            if name not in held or name not in wanted:
                return inner, held.get(name), wanted.get(name)
            if found := _difference(held[name], wanted[name], inner):
                return found
        return None
    if isinstance(held, list) and isinstance(wanted, list) and len(held) == len(wanted):
        for index, pair in enumerate(zip(held, wanted, strict=True)):
            if found := _difference(*pair, f"{where}[{index}]"):
                return found
        return None
    return None if held == wanted else (where, held, wanted)


def _shown(value: Any) -> str:
    return "nothing" if value is None else json.dumps(value, ensure_ascii=False)[:200]
