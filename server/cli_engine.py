"""Which of a command line's words are ours and which are vLLM's own. Light to import."""

import argparse
from collections.abc import Sequence


def split_engine_flags(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None
) -> tuple[argparse.Namespace, list[str]]:
    """Our arguments, and the words after a subcommand that we do not know, in order: flags for vLLM's own parser.

    Without `--engine vllm` such words are an error, as ever. Every parser on the way must be made with
    `allow_abbrev=False`, or it would take a vLLM flag that one of ours begins with.
    """
    args, flags = parser.parse_known_args(argv)
    if flags and getattr(args, "engine", None) != "vllm":
        parser.error(f"unrecognized arguments: {' '.join(flags)}")
    return args, flags
