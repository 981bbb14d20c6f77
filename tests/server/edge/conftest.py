"""One server for a module's tests."""

from collections.abc import Iterator

import pytest

from tests.server.edge.serving import Edge, edge


@pytest.fixture(scope="module")
def _served() -> Iterator[Edge]:
    with edge() as served:
        yield served


@pytest.fixture
def served(_served: Edge) -> Iterator[Edge]:
    yield _served
    _served.reset()
