"""What every test shares: one thread, fixed seeds, and the measuring data where they are present."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
# Tiny tensors gain nothing from more, and threads that wait for each other starve on busy cores.
torch.set_num_threads(1)


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

    A test that needs them is skipped where they are missing, and fails where CI is set.
    """
    folder = Path(os.environ.get("SKILLGUARD_DATA", ROOT.parent / "shared" / "data"))
    if folder.is_dir():
        return folder
    message = f"{folder}: no measuring data; set SKILLGUARD_DATA"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)
