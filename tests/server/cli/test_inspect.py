"""`skillguard inspect` of a folder says where in a pass the guard reads, or changes."""

from pathlib import Path

import pytest

from guards.methods.registry import LUNAR, SELECTIVE_PRUNING, SPANS
from server.cli.main import main
from tests.guards.samples import write


def rows(folder: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    assert main(["inspect", str(folder)]) == 0
    cells = [line.split("│")[1:3] for line in capsys.readouterr().out.splitlines() if line.count("│") == 3]
    return {name.strip(): value.strip() for name, value in cells}


def test_places(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reads = rows(write(tmp_path / "ksd", SPANS), capsys)
    assert (reads["reads"], "changes" in reads) == ("key of layers 1, 2", False)
    changes = rows(write(tmp_path / "lunar", LUNAR), capsys)
    assert (changes["changes"], "reads" in changes) == ("output of layer 1", False)
    both = rows(write(tmp_path / "sp", SELECTIVE_PRUNING), capsys)
    assert both["changes"] == "attention of layers 0, 1; key of layers 0, 2"


def test_an_address_without_its_scheme_is_no_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "127.0.0.1:8000"]) == 1
    assert "a server's address, which begins with http://" in capsys.readouterr().err


def test_a_folder_of_artifacts_is_answered_with_one_of_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    artifact = write(tmp_path / "ksd", SPANS)
    assert main(["inspect", str(tmp_path)]) == 1
    told = capsys.readouterr().err
    assert "got no file 'manifest.json'" in told
    assert f"name one of those in it, such as {artifact}" in told
