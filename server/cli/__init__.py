"""The `skillguard` command: `main` parses, one module a subcommand runs."""

from server.cli.main import main

__all__ = ["main"]
