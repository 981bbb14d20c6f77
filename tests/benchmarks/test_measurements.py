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
