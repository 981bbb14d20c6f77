"""A pytest plugin that writes each test's outcome as a line of JSON, to the file that an environment variable names."""

import json
import os
from pathlib import Path

import pytest

FILE = "SKILLGUARD_OUTCOMES"
LONGEST = 300
"""Characters kept of a failure."""


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """A line for each test; of one that fails in its setup, that."""
    if report.when != "call" and not (report.when == "setup" and report.outcome != "passed"):
        return
    crash = getattr(report.longrepr, "reprcrash", None)
    said = str(crash.message if crash else report.longrepr or "")
    line = {"test": report.nodeid, "outcome": report.outcome, "said": " ".join(said.split())[:LONGEST]}
    with Path(os.environ[FILE]).open("a", encoding="utf-8") as file:
        print(json.dumps(line), file=file)
