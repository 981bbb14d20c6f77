"""Programs of the system that some tests need."""

import os
import shutil

import pytest


def needed(program: str, package: str) -> str:
    """Where it is. The test is skipped where it is not, and fails there where CI is set.

    `SKILLGUARD_WITHOUT` names those that could not be installed, which `.ci/run` then says.
    """
    found = shutil.which(program)
    if found is None:
        excused = program in os.environ.get("SKILLGUARD_WITHOUT", "").split()
        assert excused or not os.environ.get("CI"), f"{program} is not installed; .ci/run installs Debian's {package}"
        pytest.skip(f"{program} is not installed (Debian's package {package})")
    return found
