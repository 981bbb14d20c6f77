"""Engines that several tests share: starting vLLM takes a quarter of a minute."""

from collections.abc import Iterator

import pytest

from tests.server.engines.vllm.live import Live, embedded, live, on_vllm


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every test of this folder starts vLLM, whose processes and imports warn in ways that are not ours."""
    for item in items:
        if "engines/vllm/" in item.nodeid:
            item.add_marker(pytest.mark.vllm)
            item.add_marker(pytest.mark.filterwarnings("default"))


@pytest.fixture(scope="session")
def engine() -> Iterator[Live]:
    """Two guards that judge prompts and one that also fires while English is written; uncompiled."""
    with live(on_vllm("ksd-mathematics", "ksd-code", "ksd-en", flags=("--enforce-eager",))) as running:
        yield running


@pytest.fixture(scope="session")
def reference() -> Iterator[Live]:
    """The same guards on the embedded engine."""
    with live(embedded("ksd-mathematics", "ksd-code", "ksd-en")) as running:
        yield running
