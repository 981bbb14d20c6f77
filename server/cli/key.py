"""`skillguard key add|list|revoke`: the keys of a keys file, of which only hashes are kept."""

import argparse
import sys
from pathlib import Path
from typing import Any


def add_parser(subparsers: Any) -> None:
    """Adds the subcommand."""
    parser = subparsers.add_parser(
        "key",
        help="add, list or revoke API keys",
        description="Adds, lists and revokes the API keys of a file for `serve --api-keys-file`. A running server "
        "takes a change in with the next request. A tenant's policy is edited in the file; `check-config` checks it.",
    )
    commands = parser.add_subparsers(dest="change", required=True, metavar="add|list|revoke")

    add = commands.add_parser(
        "add", help="make a key", description="Makes a key and prints it. It is shown once: the file holds its hash."
    )
    add.add_argument("name", help="whose key it is; shown in logs")
    add.add_argument(
        "--tenant", metavar="NAME", help="whose policy holds for it (default: default; a key of role admin has none)"
    )
    add.add_argument("--role", choices=("user", "operator", "metrics", "admin"), default="user")
    add.set_defaults(run=add_key)

    show = commands.add_parser(
        "list", help="show the keys", description="Shows every key by tenant, and never the key itself."
    )
    show.set_defaults(run=list_keys)

    revoke = commands.add_parser("revoke", help="take a key away", description="Takes a key out of the file.")
    revoke.add_argument("name", help="the key's name")
    revoke.set_defaults(run=revoke_key)

    for command in (add, show, revoke):
        command.add_argument("--file", type=Path, required=True, help="keys file; the first key that is added makes it")


def add_key(args: argparse.Namespace) -> int:
    """Prints the new key; says on stderr where it is of a new tenant."""
    from server.auth import DEFAULT_TENANT, Role, new_key
    from server.errors import ConfigError
    from server.tenants import Tenant, changing

    if args.role == Role.ADMIN and args.tenant is not None:
        raise ConfigError("--tenant: a key of the role admin is of no tenant; leave it out")
    name = args.tenant or DEFAULT_TENANT
    key, entry = new_key(args.name, Role(args.role))
    with changing(args.file) as held:
        tenants = held[0]
        if any(entry.name == other.name for _, other in tenants.keys):
            raise ConfigError(f"keys file {args.file}: has a key named {args.name!r} already; choose another name")
        if entry.role is Role.ADMIN:
            held[0] = tenants.model_copy(update={"admins": (*tenants.admins, entry)})
            made = False
        else:
            made = name not in tenants.tenants
            tenant = Tenant() if made else tenants.tenants[name]
            grown = tenant.model_copy(update={"keys": (*tenant.keys, entry)})
            held[0] = tenants.model_copy(update={"tenants": {**tenants.tenants, name: grown}})
    if made:
        print(f"tenant {name} is new: it has the server's policy and no limits", file=sys.stderr)
    print(key)
    return 0


def list_keys(args: argparse.Namespace) -> int:
    """Prints one line for each key."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from server.tenants import read_tenants

    table = Table("key", "tenant", "role", "hash", box=box.SIMPLE)
    for tenant, key in read_tenants(args.file).keys:
        table.add_row(key.name, tenant, key.role, key.sha256[:12])
    Console().print(table)
    return 0


def revoke_key(args: argparse.Namespace) -> int:
    """Takes the key out. Its tenant stays, with its policy."""
    from server.auth import KeyEntry
    from server.errors import ConfigError
    from server.tenants import changing

    def left(keys: tuple[KeyEntry, ...]) -> tuple[KeyEntry, ...]:
        return tuple(key for key in keys if key.name != args.name)

    with changing(args.file) as held:
        names = [key.name for _, key in held[0].keys]
        if args.name not in names:
            raise ConfigError(
                f"keys file {args.file}: got no key named {args.name!r}; it has {', '.join(names) or 'none'}"
            )
        tenants = {
            name: tenant.model_copy(update={"keys": left(tenant.keys)}) for name, tenant in held[0].tenants.items()
        }
        held[0] = held[0].model_copy(update={"tenants": tenants, "admins": left(held[0].admins)})
    print(f"revoked {args.name}")
    return 0
