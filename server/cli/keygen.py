"""`skillguard keygen`: a key pair that artifacts are signed with."""

import argparse
from pathlib import Path
from typing import Any


def add_parser(subparsers: Any) -> None:
    """Adds the subcommand."""
    parser = subparsers.add_parser(
        "keygen",
        help="make a key pair to sign artifacts with",
        description="Makes an Ed25519 key pair: FILE, the private key, which nobody else may read and which stays "
        "where artifacts are signed, and FILE.pub, for `serve --trusted-key-files`. No file is overwritten.",
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="private key to write; FILE.pub is written beside it")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints the public key."""
    from guards.artifact.signatures import write_key_pair

    name = write_key_pair(args.file)
    print(f"{args.file}: private key, for `skillguard sign --key`\n{args.file}.pub: public key {name}")
    return 0
