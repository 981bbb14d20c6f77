"""Hurts a served demo in every way of registry.py, while callers ask for what it must not say.

    python -m benchmarks.faults [--only NAME ...]

Each fault has a server of its own. Callers ask before, while and after it is done; a token of an answer that must be
withheld is a leak, 60 seconds without a word are a hang. The last line printed is one JSON object, as in
benchmarks/results/faults.json, in which --only replaces the rows of what it runs; a run that was stopped goes on with
the same command. The exit status is 1 where something leaked, hung or was not as wanted. `clock-steps` needs
libfaketime (Debian's package faketime).
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.faults.callers import Callers
from benchmarks.faults.fault import Fault, Scene
from benchmarks.faults.registry import FAULTS

NAME = "faults"
_BEFORE = 12


def run(fault: Fault) -> dict[str, Any]:
    """One row."""
    with tempfile.TemporaryDirectory() as name, fault.serve(folder := Path(name)) as served:
        callers = Callers(served.url, fault.key(folder))
        with callers.asking():
            callers.await_replies(_BEFORE)
            seen = dict(fault.run(Scene(served, callers, folder)))
        hangs = callers.of_skill["hang"] + callers.of_other["hang"]
        sound = bool(seen.pop("sound")) and not hangs and not callers.leaked
    return {
        "fault": fault.name,
        "engine": fault.engine,
        "what": fault.what,
        "wanted": fault.wanted,
        "sound": sound,
        "leaked": callers.leaked,
        "hangs": hangs,
        "of the skill": dict(callers.of_skill),
        "of others": dict(callers.of_other),
        "seen": seen,
    }


def published() -> dict[str, dict[str, Any]]:
    """Rows of the result file, by fault."""
    path = report.RESULTS / f"{NAME}.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    return {row["fault"]: row for row in rows}


def main() -> None:
    """Runs the faults and publishes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=FAULTS, help=f"of {', '.join(FAULTS)}")
    args = parser.parse_args()
    rows: dict[str, dict[str, Any]] = {} if args.only else {row["fault"]: row for row in report.kept(NAME)}
    for name in [each for each in args.only or FAULTS if each not in rows]:
        rows[name] = run(FAULTS[name])
        print(json.dumps(rows[name], ensure_ascii=False), file=sys.stderr, flush=True)
        if not args.only:
            report.keep(NAME, list(rows.values()))
    rows = {**(published() if args.only else {}), **rows}  # as they are now: another run may have ended meanwhile
    found = [rows[name] for name in FAULTS if name in rows]
    (report.amend if args.only else report.publish)(NAME, found)
    sys.exit(0 if all(row["sound"] for row in found) else 1)


if __name__ == "__main__":
    main()
