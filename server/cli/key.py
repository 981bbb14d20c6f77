"""`skillguard key`: makes an API key; only its hash is kept."""

import argparse
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def add_parser(subparsers: Any) -> None:
    """Adds the subcommand."""
    parser = subparsers.add_parser(
        "key",
        help="make an API key",
        description="Makes an API key, adds its hash to a keys file for `serve --api-keys-file`, and prints the key. "
        "It is shown once: the file holds its hash only.",
    )
    parser.add_argument("name", help="whose key it is; shown in logs")
    parser.add_argument("--file", type=Path, required=True, help="keys file; made when it does not exist")
    parser.add_argument("--role", choices=("user", "operator", "metrics"), default="user")
    parser.add_argument(
        "--shadow",
        metavar="GUARD",
        action="append",
        default=[],
        help="a guard whose hits on this key's requests are only counted and logged; repeat it for more",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints the new key."""
    print(add_key(args.file, args.name, args.role, args.shadow))
    return 0


def add_key(path: Path, name: str, role: str, shadow: Iterable[str] = ()) -> str:
    """Adds an entry to a keys file, readable by its owner only, and returns the key. Raises ConfigError."""
    from server.auth import Role, load_keys, new_key
    from server.errors import ConfigError

    entries = load_keys(path) if path.exists() else ()
    if any(entry.name == name for entry in entries):
        raise ConfigError(f"keys file {path}: has a key named {name!r} already; choose another name")
    key, entry = new_key(name, Role(role), shadow)
    kept = [each.model_dump(mode="json", exclude_defaults=True) for each in (*entries, entry)]
    text = json.dumps({"keys": kept}, indent=1)
    scratch = path.with_name(path.name + ".new")
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text + "\n")
    scratch.replace(path)
    return key
