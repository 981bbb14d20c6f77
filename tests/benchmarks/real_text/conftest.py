"""What the tests of the real-text benchmarks share."""

from pathlib import Path

import pytest

from tests.benchmarks.real_text.made_up import made_up_data


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made-up rows."""
    return made_up_data(tmp_path_factory.mktemp("data"))
