"""The `skillguard` command. Each subcommand is one module; heavy imports happen only once it runs."""

import argparse
import sys
from collections.abc import Sequence

from guards.errors import SkillguardError
from server import cli_calibrate, cli_evaluate, cli_import, cli_inspect, cli_key, cli_serve
from server.version import version

COMMANDS = (cli_serve, cli_calibrate, cli_evaluate, cli_inspect, cli_import, cli_key)


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="skillguard",
        description="Takes one skill away from an open-weight language model at inference time.",
    )
    parser.add_argument("--version", action="version", version=f"skillguard {version()}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand; errors a user can cause become one line on stderr and exit status 1."""
    args = build_parser().parse_args(argv)
    try:
        return int(args.run(args))
    except SkillguardError as error:
        print(f"skillguard {args.command}: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
