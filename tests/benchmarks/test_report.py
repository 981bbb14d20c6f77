"""Result files: of a finished run, and of one that was stopped."""

import json
from pathlib import Path

import pytest

from benchmarks import report


def test_a_stopped_run_leaves_a_file_that_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results")
    partial = tmp_path / "results" / "measured.partial.json"
    report.keep("measured", [{"recall": 1.0}], model="tiny")
    assert capsys.readouterr().out == ""
    found = json.loads(partial.read_text(encoding="utf-8"))
    assert (found["complete"], found["rows"], found["model"]) == (False, [{"recall": 1.0}], "tiny")
    report.publish("measured", [{"recall": 1.0}, {"recall": 0.5}], model="tiny")
    assert not partial.exists()
    written = json.loads((tmp_path / "results" / "measured.json").read_text(encoding="utf-8"))
    assert written["rows"] == json.loads(capsys.readouterr().out)["rows"]
    assert "complete" not in written
