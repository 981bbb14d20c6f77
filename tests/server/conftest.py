"""Fixtures of the server's tests."""

import pytest


@pytest.fixture
def anyio_backend() -> str:
    """asyncio only: the engines are written for it."""
    return "asyncio"
