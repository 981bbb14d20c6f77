"""Reads audit files back: whether their lines are a whole chain, and if not, where it is broken."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from server.audit.chain import NOTHING, BrokenLineError, Line, Link, parsed
from server.audit.folder import FILE_NAME
from server.errors import AuditFilesError


@dataclass
class Report:
    """What was found. `problems` is empty where the lines are one whole chain."""

    files: int = 0
    lines: int = 0
    first: int | None = None
    """Number of the first line."""
    last: Link = field(default_factory=Link)
    noted: int | None = None
    """Number of the line whose hash was noted, where it was found."""
    problems: list[str] = field(default_factory=list)


def audit_files(paths: Sequence[Path]) -> list[Path]:
    """Files as they are, and of folders those that are named like audit files; by the number of their first line.

    Raises AuditFilesError where a path cannot be read or a folder holds none.
    """
    found: list[Path] = []
    for path in paths:
        files = [path]
        if path.is_dir():
            files = [each for each in path.iterdir() if FILE_NAME.fullmatch(each.name)]
            if not files:
                raise AuditFilesError(f"{path}: holds no audit files (audit-000000000000.jsonl and so on)")
        found += files
    return sorted(dict.fromkeys(found), key=lambda path: (_first_number(path), path))


def read_lines(path: Path) -> Iterator[Line | str]:
    """Each line, or what is wrong with it. Raises AuditFilesError where the file cannot be read."""
    try:
        with path.open("rb") as file:
            for raw in file:
                if not raw.endswith(b"\n"):
                    yield "it is not finished"
                    return
                try:
                    yield parsed(raw[:-1])
                except BrokenLineError as error:
                    yield str(error)
    except OSError as error:
        raise AuditFilesError(f"{path}: cannot be read ({error.strerror}); name an audit folder") from error


def verify(paths: Sequence[Path], *, after: str = NOTHING, noted: str | None = None) -> Report:
    """Follows the chain through all files. Raises AuditFilesError like `audit_files`.

    `after`: the hash of the line before the first, where older files were put away. `noted`: a hash that was read off
    the server and kept elsewhere, which has to be in the chain.
    """
    report = Report(last=Link(0, after))
    for path in audit_files(paths):
        report.files += 1
        for at, line in enumerate(read_lines(path), start=1):
            _follow(report, f"{path.name}, line {at}", line, after=after)
            if isinstance(line, Line) and line.hash == noted:
                report.noted = line.number
    if noted is not None and report.noted is None and noted != after:
        report.problems.append(
            f"no line has the hash that was noted, {noted[:12]}...: the end was cut off, or this is another log"
        )
    return report


def _follow(report: Report, where: str, line: Line | str, *, after: str) -> None:
    if isinstance(line, str):
        report.first = report.last.lines if report.first is None else report.first
        report.problems.append(f"{where}: {line}")
        report.last = Link(report.last.lines + 1, "")  # what it said is not known: the next line is taken at its word
        return
    wanted, number = report.last, line.number
    if report.first is None:
        report.first = number
        if line.previous != after:
            report.problems.append(
                f"{where}: is line {number}, behind one with hash {line.previous[:12]}...; what was before is missing"
            )
    elif number > wanted.lines:
        report.problems.append(f"{where}: lines {wanted.lines} to {number - 1} before it are missing")
    elif number < wanted.lines:
        report.problems.append(f"{where}: is line {number}, where line {wanted.lines} belongs")
    elif wanted.head and line.previous != wanted.head:
        report.problems.append(f"{where}: does not follow from the line before it, which was replaced")
    report.lines += 1
    report.last = line.link


def _first_number(path: Path) -> int:
    """As the first line says, or else the name."""
    for line in read_lines(path):
        if isinstance(line, Line):
            return line.number
        break
    name = FILE_NAME.fullmatch(path.name)
    return int(name[1]) if name else 0
