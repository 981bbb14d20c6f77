"""The page of measurements and README's figures say what the result files hold."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.measurements.__main__ import ROOT, main
from benchmarks.measurements.page import COMMAND, PAGE
from benchmarks.measurements.readme import BEGIN, README

GUARD = Path("artifacts/demo/guards/na-mathematics/manifest.json")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A copy of all that the page is made of, and of what is made."""
    for name in (PAGE, README, GUARD):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    results = tmp_path / "benchmarks" / "results"
    results.mkdir(parents=True)
    for path in (ROOT / "benchmarks" / "results").glob("*.json"):
        shutil.copy(path, results / path.name)
    return tmp_path


def test_the_committed_page_and_readme_are_what_the_result_files_say(capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["--check"])
    assert status == 0, capsys.readouterr().err


def _change(field: str, **fields: str) -> Callable[[dict[str, Any]], None]:
    def change(found: dict[str, Any]) -> None:
        row = next(row for row in found["rows"] if all(row[name] == value for name, value in fields.items()))
        row[field] = 0.123456

    return change


CHANGES = [
    ("demo_skills", _change("relative", guard="na-mathematics", skill="mathematics"), {PAGE}),
    ("demo_skills", _change("relative", guard="ksd-code", skill="code"), {PAGE, README}),
    ("figure4", _change("relative", guard="sp-code-1.5", skill="code"), {PAGE}),
    ("heldout", _change("bits_per_byte", model="realtext_model", test="mbpp"), {PAGE}),
    ("real_text", _change("recall", variant="cube", forget="language-es", meaning="own"), {PAGE}),
    ("real_text", _change("auroc", variant="default", forget="code", test="all others"), {PAGE, README}),
    ("transfer", _change("recall", detector="pooled", test="gsm8k/solve", role="forget"), {PAGE, README}),
    ("robustness", _change("recall", detector="pooled", test="gsm8k/typos", role="forget"), {PAGE, README}),
    ("parity", _change("max_relative_score_difference", variant="eager", guard="ksd-code"), {PAGE}),
    ("overhead", _change("ratio", guards="neuron adjust 3 %", workload="decode"), {PAGE, README}),
    ("overhead", lambda found: found["environment"].update(commit="0000000"), {PAGE}),
]


@pytest.mark.parametrize(("name", "change", "stale"), CHANGES)
def test_a_figure_that_changed_fails_the_check(
    repository: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    change: Callable[[dict[str, Any]], None],
    stale: set[str],
) -> None:
    path = repository / "benchmarks" / "results" / f"{name}.json"
    found = json.loads(path.read_text(encoding="utf-8"))
    change(found)
    path.write_text(json.dumps(found), encoding="utf-8")
    before = (repository / PAGE).read_text(encoding="utf-8")
    assert main(["--check"], repository) == 1
    said = capsys.readouterr().err
    assert {name for name in (PAGE, README) if f"{Path(name).name} differs" in said} == stale
    assert f"Run `{COMMAND}`" in said
    assert (repository / PAGE).read_text(encoding="utf-8") == before, "a check writes nothing"
    assert main([], repository) == 0
    assert main(["--check"], repository) == 0


def _asked(guard: str, skill: str, cell: str, role: str, **more: float) -> dict[str, Any]:
    counts = {"hits": 1, "total": 4, "rate": 0.25, "low": 0.0063, "high": 0.8059}
    return {"skill": skill, "guard": guard, "cell": cell, "role": role, **counts, **more}


ASKED_ROWS = [
    _asked("m1", "mathematics", "gsm8k", "forget"),
    _asked("m2", "mathematics", "gsm8k", "forget", rate=0.5),
    _asked("m1", "mathematics", "mbpp", "retain"),
    _asked("m1", "mathematics", "written/mbpp", "retain", at_prompt=0, while_written=1, tokens_median=7, tokens_most=9),
    _asked("m1", "mathematics", "conversation/first", "forget", at_prompt=1, while_written=0),
    _asked("es", "language-es", "xquad-en", "retain", rate=0.0),
    _asked("es", "language-es", "xquad-es", "forget", rate=1.0),
]


def test_models_that_were_asked_have_a_chapter(repository: Path) -> None:
    before = (repository / PAGE).read_text(encoding="utf-8")
    for path in repository.glob("benchmarks/results/asked.*"):
        path.unlink()
    results = repository / "benchmarks" / "results"
    guards = [{"guard": "m1", "skill": "mathematics", "method": "ksd", "digest": "ab" * 32}]
    found = {"command": "python -m benchmarks.asked", "environment": {"commit": "c"}, "model": "tiny", "guards": guards}
    assert main([], repository) == 0
    without = (repository / PAGE).read_text(encoding="utf-8")
    assert "Real models, over HTTP" not in without
    assert "\n\n\n" not in without
    stopped = {**found, "complete": False, "rows": ASKED_ROWS}
    (results / "asked.other.partial.json").write_text(json.dumps(stopped), encoding="utf-8")
    assert main([], repository) == 0
    assert (repository / PAGE).read_text(encoding="utf-8") == without, "a stopped run is no measurement"
    (results / "asked.tiny.json").write_text(json.dumps({**found, "rows": ASKED_ROWS}), encoding="utf-8")
    assert main(["--check"], repository) == 1
    assert main([], repository) == 0
    lines = (repository / PAGE).read_text(encoding="utf-8").splitlines()
    assert "### tiny" in lines
    assert any(
        line.split("|")[1:4] == [" `gsm8k` ", " 0.25 [0.01, 0.81] of 4 ", " 0.50 [0.01, 0.81] of 4 "]
        for line in map(_squeezed, lines)
    )
    assert any(line.split("|")[1:3] == [" `mbpp` ", " 0.25 [0.01, 0.81] of 4 "] for line in map(_squeezed, lines))
    assert any("0, 1 (median 7)" in line for line in lines)
    assert any(line.split("|")[1:4] == [" `es` ", " 0.00 ", " 1.00 "] for line in map(_squeezed, lines))
    assert before.partition("## vLLM")[2] in "\n".join([*lines, ""])


def _squeezed(line: str) -> str:
    return " ".join(line.split())


def test_a_figure_edited_by_hand_fails_the_check(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = repository / PAGE
    page.write_text(page.read_text(encoding="utf-8").replace("0.994", "0.999", 1), encoding="utf-8")
    assert main(["--check"], repository) == 1
    assert "0.999" in capsys.readouterr().err


def test_a_readme_without_a_place_for_figures_is_an_error(repository: Path) -> None:
    readme = repository / README
    readme.write_text(readme.read_text(encoding="utf-8").replace(BEGIN, ""), encoding="utf-8")
    with pytest.raises(LookupError, match="figures stand between"):
        main(["--check"], repository)
