"""The `skillguard` command. Each subcommand is one module; heavy imports happen only once it runs."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from guards.core.version import tool_name
from guards.errors import SkillguardError
from server.cli import audit as cli_audit
from server.cli import calibrate as cli_calibrate
from server.cli import check_config as cli_check
from server.cli import doctor as cli_doctor
from server.cli import evaluate as cli_evaluate
from server.cli import guards as cli_guards
from server.cli import import_esu as cli_import
from server.cli import inspect as cli_inspect
from server.cli import key as cli_key
from server.cli import keygen as cli_keygen
from server.cli import propose_tau as cli_propose
from server.cli import serve as cli_serve
from server.cli import sign as cli_sign
from server.cli.engine import own_flags, split_flags
from server.cli.flags import as_flags
from server.engines.errors import EngineFlagError

COMMANDS = (
    cli_serve,
    cli_check,
    cli_doctor,
    cli_calibrate,
    cli_evaluate,
    cli_inspect,
    cli_import,
    cli_keygen,
    cli_sign,
    cli_key,
    cli_guards,
    cli_audit,
    cli_propose,
)
WITH_ENGINE = ("serve", "check-config", "doctor", "calibrate", "evaluate")


class WholeFlags(argparse.ArgumentParser):
    """A parser, and those of its subcommands, that takes no beginning of a flag for it: --key would be --key-file."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.allow_abbrev = False


def build_parser() -> WholeFlags:
    """The whole command line."""
    parser = WholeFlags(
        prog="skillguard",
        description="Takes one skill away from an open-weight language model at inference time.",
    )
    parser.add_argument("--version", action="version", version=tool_name())
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_parser(subparsers)
    return parser


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The parsed arguments. What a command that runs an engine does not know is kept in `engine_flags`, for it,
    and what it knows in `own_flags`.
    """
    parser = build_parser()
    if not argv or argv[0] not in WITH_ENGINE:
        return parser.parse_args(argv)
    own = own_flags(parser, argv[0])
    ours, engine_flags = split_flags(argv, own)
    return parser.parse_args(ours, argparse.Namespace(engine_flags=tuple(engine_flags), own_flags=own))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand; errors a user can cause become one line on stderr and exit status 1, or 2 for a bad flag."""
    args = parse(sys.argv[1:] if argv is None else list(argv))
    try:
        return int(args.run(args))
    except EngineFlagError as error:
        print(f"skillguard {args.command}: error: {as_flags(str(error))}", file=sys.stderr)
        return 2
    except SkillguardError as error:
        print(f"skillguard {args.command}: error: {as_flags(str(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
