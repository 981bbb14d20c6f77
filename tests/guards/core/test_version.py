"""What the program calls itself."""

from importlib import metadata

import pytest

from guards.core.version import tool_name, version


def test_it_is_the_installed_packages() -> None:
    assert version() == metadata.version("skillguard")
    assert tool_name() == f"skillguard {version()}"


def test_a_checkout_that_was_never_installed_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    assert tool_name() == "skillguard unknown"
