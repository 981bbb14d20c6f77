"""CI runs the test command that README shows, or fails aloud."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / ".ci" / "test"


def run(folder: Path, readme: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    """The script beside a README, with a `python` that says what it was called with."""
    (folder / ".ci").mkdir()
    shutil.copy(SCRIPT, folder / ".ci" / "test")
    (folder / "README.md").write_text(readme, encoding="utf-8")
    python = folder / "bin" / "python"
    python.parent.mkdir()
    python.write_text(f'#!/usr/bin/env bash\necho "called: $*"\nexit {status}\n', encoding="utf-8")
    python.chmod(0o755)
    environment = {**os.environ, "PATH": f"{python.parent}:{os.environ['PATH']}"}
    script = ["bash", str(folder / ".ci" / "test")]
    return subprocess.run(script, env=environment, capture_output=True, text=True, check=False)


def test_the_one_test_command_is_run(tmp_path: Path) -> None:
    done = run(tmp_path, "# Title\n\n```bash\npython -m pytest -x\n```\n\nOr `python -m pytest` with more.\n")
    assert (done.returncode, done.stdout.splitlines()) == (0, ["+ python -m pytest -x ", "called: -m pytest -x"])


def test_its_failure_is_the_scripts(tmp_path: Path) -> None:
    assert run(tmp_path, "python -m pytest\n", status=3).returncode == 3


@pytest.mark.parametrize(
    ("readme", "count"), [("# Title\n", 0), ("  python -m pytest\n", 0), ("python -m pytest\npython -m pytest -x\n", 2)]
)
def test_any_other_number_of_commands_fails_aloud(tmp_path: Path, readme: str, count: int) -> None:
    done = run(tmp_path, readme)
    assert done.returncode == 1
    assert done.stdout == "", "nothing ran"
    assert f"README.md: {count} lines" in done.stderr
    assert "wanted exactly 1" in done.stderr


def test_the_committed_readme_has_the_command() -> None:
    lines = (SCRIPT.parent.parent / "README.md").read_text(encoding="utf-8").splitlines()
    assert sum(line.startswith("python -m pytest") for line in lines) == 1
