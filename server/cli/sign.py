"""`skillguard sign`: vouches for artifacts with a private key."""

import argparse
from pathlib import Path
from typing import Any


def add_parser(subparsers: Any) -> None:
    """Adds the subcommand."""
    parser = subparsers.add_parser(
        "sign",
        help="sign artifacts",
        description="Signs artifacts: the digest that `skillguard inspect` prints, which covers all of each. The "
        "signature is a file beside the artifact's own; those of other keys stay.",
    )
    parser.add_argument("artifacts", type=Path, nargs="+", metavar="ARTIFACT", help="artifact folder")
    parser.add_argument(
        "--key", type=Path, required=True, metavar="FILE", help="private key (`skillguard keygen` makes one)"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Signs each artifact once all of them were read, and prints what was signed."""
    from guards.artifact.pins import shown_digest
    from guards.artifact.signatures import public_name, read_private
    from guards.artifact.store import read_artifact, sign_artifact
    from guards.methods.registry import load_guard

    key = read_private(args.key)
    read = [(folder, read_artifact(folder)) for folder in args.artifacts]
    for _, artifact in read:
        load_guard(artifact)
    for folder, artifact in read:
        sign_artifact(folder, artifact, key)
        print(f"{folder}: {shown_digest(artifact.digest)}, signed by {public_name(key.public_key())}")
    return 0
