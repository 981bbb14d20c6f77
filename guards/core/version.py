"""The version of this program."""

from importlib import metadata


def version() -> str:
    """As the installed package says; "unknown" in a checkout that was never installed."""
    try:
        return metadata.version("skillguard")
    except metadata.PackageNotFoundError:
        return "unknown"


def tool_name() -> str:
    """Name and version, for records and for people."""
    return f"skillguard {version()}"
