"""What commands that ask a running server have in common: the key that they send."""

import argparse
import os
from pathlib import Path

KEY_VARIABLE = "SKILLGUARD_KEY"


def add_key_file(parser: argparse._ActionsContainer, whose: str) -> None:
    """Adds the flag. No flag takes a key itself: its value would stand in the list of processes."""
    parser.add_argument(
        "--key-file",
        type=Path,
        metavar="FILE",
        help=f"file that holds {whose} (default: ${KEY_VARIABLE})",
    )


def read_key(file: Path | None) -> str | None:
    """The key of a file, or of the environment. Raises ConfigError."""
    from server.errors import ConfigError

    if file is None:
        return os.environ.get(KEY_VARIABLE)
    try:
        key = file.read_text().strip()
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"--key-file {file}: cannot be read ({error}); give a file that holds the key alone"
        ) from error
    if not key.isascii() or len(key.split()) != 1:
        raise ConfigError(f"--key-file {file}: wanted the key alone, and nothing else")
    return key
