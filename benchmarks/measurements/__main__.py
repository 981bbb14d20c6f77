"""Writes docs/measurements.md, docs/choosing.md and README's figures from the result files.

    python -m benchmarks.measurements [--check]

With --check nothing is written: the exit status is 1 where a file differs from what the result files say.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.measurements.choosing import CHOOSING, choosing_page
from benchmarks.measurements.page import COMMAND, PAGE, page
from benchmarks.measurements.readme import README, with_figures
from benchmarks.measurements.results import Results

ROOT = Path(__file__).resolve().parent.parent.parent


def written(root: Path) -> dict[Path, str]:
    """Every file that is made from result files, and what it must hold."""
    results, readme = Results(root), root / README
    return {
        root / PAGE: page(results),
        root / CHOOSING: choosing_page(results),
        readme: with_figures(readme.read_text(encoding="utf-8"), results),
    }


def difference(path: Path, wanted: str) -> str | None:
    """The first line in which a file differs, or None."""
    if not path.exists():
        return f"{path.name} is missing"
    got_lines, wanted_lines = path.read_text(encoding="utf-8").splitlines(), wanted.splitlines()
    for count in range(max(len(got_lines), len(wanted_lines))):
        got, right = ("".join(lines[count : count + 1]) for lines in (got_lines, wanted_lines))
        if got != right:
            return f"{path.name} differs from benchmarks/results/ at line {count + 1}\n  got    {got}\n  wanted {right}"
    return None


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Writes or checks; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where a file differs")
    args = parser.parse_args(arguments)
    files = written(root)
    if not args.check:
        for path, text in files.items():
            path.write_text(text, encoding="utf-8")
        return 0
    found = [said for path, text in files.items() if (said := difference(path, text)) is not None]
    for said in found:
        print(said, file=sys.stderr)
    if found:
        print(f"Run `{COMMAND}` and commit what it writes.", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
