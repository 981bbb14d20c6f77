"""`skillguard audit`: what the audit log's files are worth."""

import argparse
import sys
from pathlib import Path
from typing import Any

_MOST_SHOWN = 20


def add_parser(subparsers: Any) -> None:
    """Adds the subcommand."""
    parser = subparsers.add_parser("audit", help="verify an audit log", description="Looks after the audit log.")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    check = actions.add_parser(
        "verify",
        help="follow the chain through all files",
        description="Follows the chain of the audit log's lines through all files, whatever their order. Prints how "
        "many lines there are and the last one's hash. Exit status 1 where a line was changed, added, moved or "
        "removed. An end that was cut off shows only against a hash that was noted elsewhere (--head).",
    )
    check.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="an audit folder, or files of one")
    check.add_argument("--head", metavar="HASH", help="a hash that /v1/audit or the program's log told earlier")
    check.add_argument(
        "--after", metavar="HASH", help="hash of the line before the first, where older files were put away"
    )
    check.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints the report."""
    from server.audit.chain import NOTHING
    from server.audit.verify import verify

    report = verify(args.paths, after=args.after or NOTHING, noted=args.head)
    first = "" if report.first in (None, 0) else f", from line {report.first}"
    print(f"{report.lines} lines in {report.files} files{first}; the last one's hash is {report.last.head}")
    if report.noted is not None:
        print(f"the noted hash is that of line {report.noted}")
    for problem in report.problems[:_MOST_SHOWN]:
        print(problem, file=sys.stderr)
    if (hidden := len(report.problems) - _MOST_SHOWN) > 0:
        print(f"and {hidden} more", file=sys.stderr)
    print("BROKEN" if report.problems else "whole")
    return 1 if report.problems else 0
