"""A run folder goes on with its own run, and with no other."""

import json
from pathlib import Path

import pytest

from server.errors import EvaluationError
from server.evaluation.folder import ITEMS, RunFolder, key_of

SETTINGS = {"model": "m", "asked": {"seed": 0, "frame": "chat"}, "suites": {"sums": {"items": 3}}}


def test_finished_items_are_found_again(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run", SETTINGS) as folder:
        folder.append({"key": "a", "text": "नमस्ते\u2028"})
        folder.append({"key": "b", "text": "2"})
    with RunFolder(tmp_path / "run", SETTINGS) as folder:
        assert {key: record["text"] for key, record in folder.records.items()} == {"a": "नमस्ते\u2028", "b": "2"}


def test_a_torn_line_is_cut_off(tmp_path: Path) -> None:
    with RunFolder(tmp_path, SETTINGS) as folder:
        folder.append({"key": "a"})
    items = tmp_path / ITEMS
    items.write_bytes(items.read_bytes() + b'{"key": "b", "te')
    with RunFolder(tmp_path, SETTINGS) as folder:
        assert list(folder.records) == ["a"]
        folder.append({"key": "c"})
    assert [json.loads(line)["key"] for line in items.read_text().splitlines()] == ["a", "c"]


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({**SETTINGS, "asked": {"seed": 1, "frame": "chat"}}, "asked.seed: got 1, the run has 0"),
        ({**SETTINGS, "suites": {}}, "suites.sums: got nothing"),
        ({**SETTINGS, "guards": 1}, "guards: got 1, the run has nothing"),
    ],
)
def test_other_settings_are_refused(tmp_path: Path, changed: dict[str, object], named: str) -> None:
    with RunFolder(tmp_path, SETTINGS):
        pass
    with pytest.raises(EvaluationError, match="other settings") as refused:
        RunFolder(tmp_path, changed)
    assert named in str(refused.value)


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(EvaluationError, match="no run folder"):
        RunFolder(tmp_path, SETTINGS)
    assert not (tmp_path / ITEMS).exists()


def test_two_runs_at_once_are_refused(tmp_path: Path) -> None:
    with RunFolder(tmp_path, SETTINGS), pytest.raises(EvaluationError, match="another evaluation"):
        RunFolder(tmp_path, SETTINGS)


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    with RunFolder(tmp_path, SETTINGS) as folder:
        folder.append({"key": "a"})
    (tmp_path / ITEMS).write_text('{"key": "a"}\nnonsense\n')
    with pytest.raises(EvaluationError, match=r"items.jsonl:2: not a finished item"):
        RunFolder(tmp_path, SETTINGS)


@pytest.mark.parametrize("torn", [b"", b'{"model": "m", "as', b"\xff"])
def test_settings_that_were_torn_are_named(tmp_path: Path, torn: bytes) -> None:
    with RunFolder(tmp_path, SETTINGS) as folder:
        folder.append({"key": "a"})
    (tmp_path / "settings.json").write_bytes(torn)
    with pytest.raises(EvaluationError, match=r"settings.json: got no JSON .* choose another --output"):
        RunFolder(tmp_path, SETTINGS)


def test_a_run_that_dies_before_its_settings_are_whole_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", full)
        with pytest.raises(OSError, match="No space left"):
            RunFolder(tmp_path / "run", SETTINGS)
    assert not (tmp_path / "run" / "settings.json").exists()
    (tmp_path / "run" / ".settings.json-killed").write_text("{")
    with RunFolder(tmp_path / "run", SETTINGS) as folder:
        assert folder.records == {}


def test_keys_tell_everything_apart() -> None:
    assert key_of(suite="a", item="b") == key_of(item="b", suite="a")
    assert len({key_of(suite="a", item="b"), key_of(suite="ab", item=""), key_of(suite="a", item="b", frame=None)}) == 3
