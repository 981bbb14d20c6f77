"""The table's command from end to end, on a model that was hardly trained: what it writes, not what it finds."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import report
from benchmarks.real_text import compare, table
from benchmarks.real_text.build import build
from benchmarks.real_text.rows import POOLED
from benchmarks.real_text.skills import SKILLS
from tests.benchmarks.real_text.test_train import TINY


@pytest.fixture(scope="module")
def model(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a model lies that was trained for a few steps."""
    folder = tmp_path_factory.mktemp("built") / "model"
    build(folder, data, replace(TINY, steps=20), 0)
    return folder


def test_the_table_is_written_and_printed(
    data: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    for module in (report, table):
        monkeypatch.setattr(module, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(sys, "argv", ["table", "--data", str(data), "--model", str(model)])
    table.main()
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    written = json.loads((tmp_path / "results" / "real_text.json").read_text(encoding="utf-8"))
    assert written["rows"] == printed["rows"]
    assert set(printed["notes"]) == set(printed["short"]) == {"paper", "cube", "default"}
    assert all(set(notes) == {skill.name for skill in SKILLS} for notes in printed["notes"].values())
    # Two paragraphs of a language are too few for a guard, and that is said.
    assert printed["notes"]["paper"]["language-zh"][0].startswith("refused: got 2 forget")
    found = {(row["variant"], row["forget"], row["test"]): row for row in printed["rows"]}
    assert {"recall", "false_abstention", "auroc", "hits", "examples", "low", "high"} <= set(
        found["paper", "mathematics", "gsm8k"]
    )
    others = [row for row in printed["rows"] if row["meaning"] == "other" and row["test"] != POOLED]
    assert found["paper", "code", POOLED]["examples"] == sum(
        row["examples"] for row in others if (row["variant"], row["forget"]) == ("paper", "code")
    )
    assert {row["variant"] for row in printed["held_out"]} >= {"paper"}
    assert not (tmp_path / "results" / "real_text.partial.json").exists()
    assert (tmp_path / "results" / "real_text.paper.png").read_bytes().startswith(b"\x89PNG")
    assert "paper: prompts refused" in (tmp_path / "results" / "real_text.md").read_text(encoding="utf-8")


def test_a_model_that_is_not_there_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["table", "--model", "nowhere"])
    with pytest.raises(SystemExit):
        table.main()
    assert "run python -m benchmarks.real_text.build first" in capsys.readouterr().err


def test_models_are_compared_by_bits_per_byte(
    data: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(sys, "argv", ["compare", "--data", str(data), "--models", str(model)])
    compare.main()
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (tmp_path / "results" / "heldout.json").is_file()
    assert set(printed["parameters"]) == {"model"}
    for row in printed["rows"]:
        bits = row["tokens"] * math.log2(row["perplexity"]) / row["bytes"]
        assert row["bits_per_byte"] == pytest.approx(bits, rel=0.01)
