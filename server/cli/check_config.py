"""`skillguard check-config`: whether `serve` would start with these settings, and where each of them comes from."""

import argparse
from typing import Any

from server.cli.engine import effective_settings
from server.cli.serve import add_settings
from server.cli.shown_settings import shown
from server.errors import SettingsError


def add_parser(subparsers: Any) -> None:
    """Adds the subcommand."""
    parser = subparsers.add_parser(
        "check-config",
        help="say whether `serve` would start, and with which settings",
        description="Takes what `serve` takes. Prints the settings in force and where each came from, and checks them, "
        "the keys file, the artifacts, and where the model is a folder that they are of it. No weights are loaded. "
        "Exit status 1 where `serve` would not start.",
    )
    add_settings(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints the settings and what was found; errors go to stderr. Raises SettingsError, EngineFlagError."""
    settings = effective_settings(args)
    print(shown(settings), flush=True)

    from server.preflight import inspect_start

    found = inspect_start(settings)
    for line in found.lines:
        print(f"# {line}")
    if found.problems:
        raise SettingsError(found.problems)
    print("# serve would start")
    return 0
