"""What tests of engines share."""

import pytest

from tests.served import tiny_served
from tests.server.engines.embedded.tiny_engine import Served


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    return tiny_served(tmp_path_factory.mktemp("served"))
