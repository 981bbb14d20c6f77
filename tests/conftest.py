"""What every test shares: one thread, fixed seeds, and the measuring data where they are present."""

import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parent.parent
# Tiny tensors gain nothing from more, and threads that wait for each other starve on busy cores. Processes that tests
# start take one too: of vLLM's, two ranks on one memory node have to be told so.
torch.set_num_threads(1)
os.environ |= {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
# The same examples in every run, and no judgement by the clock: a busy machine is no failure.
settings.register_profile(
    "same",
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=100,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("same")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where several processes share the tests (`-n`), those that start vLLM come first: all wait for the last file."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: item.get_closest_marker("vllm") is None)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test that needs vLLM is skipped where it is not installed, and fails there where CI is set."""
    if item.get_closest_marker("vllm") and not os.environ.get("CI") and find_spec("vllm") is None:
        pytest.skip("vLLM is not installed; CONTRIBUTING.md says how")


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    """Every test starts from the same seed, with deterministic kernels."""
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The measuring data: SKILLGUARD_DATA, or ../shared/data beside the repository.

    A test that needs them is skipped where they are missing, and fails where they were named and are missing.
    """
    named = os.environ.get("SKILLGUARD_DATA")
    folder = Path(named) if named else ROOT.parent / "shared" / "data"
    if folder.is_dir():
        return folder
    message = f"{folder}: no measuring data; set SKILLGUARD_DATA"
    if named:
        pytest.fail(message)
    pytest.skip(message)
