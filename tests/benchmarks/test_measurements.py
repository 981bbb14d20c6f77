"""The page of measurements and README's figures say what the result files hold."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import robustness, transfer
from benchmarks.detectors.registry import ENTRIES
from benchmarks.detectors.rows import Measured, rows_of
from benchmarks.detectors.run import USUAL_SKILLS, Wanted
from benchmarks.measurements.__main__ import ROOT, main
from benchmarks.measurements.page import COMMAND, PAGE
from benchmarks.measurements.readme import BEGIN, README
from benchmarks.prompts.materials import MATERIALS

GUARD = Path("artifacts/demo/guards/na-mathematics/manifest.json")


TRANSFER, ROBUSTNESS = "transfer.made-up-0.5b", "robustness.made-up-0.5b"


def _made_up(sets: Sequence[Wanted]) -> dict[str, Any]:
    """A result file of drawn ratios."""
    draw, rows = torch.Generator().manual_seed(0), []
    for name, entry in ENTRIES.items():
        ratios = [
            Measured(MATERIALS[one.material], one.format, torch.rand(20, generator=draw) + shift)
            for one in sets
            for shift in [0.3 if MATERIALS[one.material].skills else 0.9]
        ]
        for skill in USUAL_SKILLS:
            rows += [{"detector": name, **row} for row in rows_of(skill, entry.plan, ratios)]
    goal = {"recall": 0.9, "false_abstention": 0.01}
    environment = {"python": "3.11", "commit": "1234567"}
    return {"command": "python -m it", "environment": environment, "goal": goal, "refused": {}, "rows": rows}


@pytest.fixture(scope="module")
def made_up() -> dict[str, str]:
    """Files of a model, by name."""
    return {
        TRANSFER: json.dumps(_made_up(transfer.sets(USUAL_SKILLS))),
        ROBUSTNESS: json.dumps(_made_up(robustness.sets(USUAL_SKILLS))),
    }


@pytest.fixture
def repository(tmp_path: Path, made_up: dict[str, str]) -> Path:
    """A copy of all that the page is made of, made-up files of a real model among it, and of what is made."""
    for name in (PAGE, README, GUARD):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    results = tmp_path / "benchmarks" / "results"
    results.mkdir(parents=True)
    for path in (ROOT / "benchmarks" / "results").glob("*.json"):
        shutil.copy(path, results / path.name)
    for name, text in made_up.items():
        (results / f"{name}.json").write_text(text, encoding="utf-8")
    (results / f"{TRANSFER}.partial.json").write_text("{}", encoding="utf-8")
    assert main([], tmp_path) == 0
    return tmp_path


def test_every_model_that_was_measured_has_its_sections(repository: Path) -> None:
    assert (repository / PAGE).read_text(encoding="utf-8").count("## made-up-0.5b: ") == 2
    for path in (repository / "benchmarks" / "results").glob("*.made-up-0.5b.json"):
        path.unlink()
    assert main([], repository) == 0
    assert "made-up" not in (repository / PAGE).read_text(encoding="utf-8")


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
    (TRANSFER, _change("recall", detector="spans", test="gsm8k/solve", role="forget"), {PAGE}),
    (TRANSFER, _change("log_auroc", detector="spans", forget="code", test="not calibrated"), {PAGE}),
    (ROBUSTNESS, _change("recall", detector="cube", test="mbpp/typos", role="forget"), {PAGE}),
    (ROBUSTNESS, _change("recall", detector="spans", test="gsm8k/typos", role="forget"), {PAGE}),
    ("parity.smollm2", _change("max_relative_score_difference", variant="eager", guard="ksd-code"), {PAGE}),
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
    _asked("m1", "mathematics", "gsm8k/end-of-300", "forget", rate=0.75),
    _asked("m1", "mathematics", "gsm8k/polite", "forget", rate=1.0),
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
    found: dict[str, Any] = {"command": "python -m it", "environment": {"commit": "c"}, "model": "tiny"}
    found |= {"guards": guards, "commits": ["c1", "c2"]}
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
    assert any("answered at `c1`, `c2`" in line for line in lines)
    assert any(
        line.split("|")[1:4] == [" `gsm8k` ", " 0.25 [0.01, 0.81] of 4 ", " 0.50 [0.01, 0.81] of 4 "]
        for line in map(_squeezed, lines)
    )
    assert any(line.split("|")[1:3] == [" `mbpp` ", " 0.25 [0.01, 0.81] of 4 "] for line in map(_squeezed, lines))
    assert any("0, 1 (median 7)" in line for line in lines)
    assert any(line.split("|")[1:4] == [" `es` ", " 0.00 ", " 1.00 "] for line in map(_squeezed, lines))
    assert before.partition("## vLLM")[2] in "\n".join([*lines, ""])
    readme = _squeezed((repository / README).read_text(encoding="utf-8"))
    assert "| tiny, `m1` | 0.25 | 0.75 | - | 1.00 | 1 of 4, 1 of 4 |" in readme
    assert "tiny, `m2`" not in readme, "it was asked nothing else"


def _squeezed(line: str) -> str:
    return " ".join(line.split())


def test_a_figure_edited_by_hand_fails_the_check(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = repository / PAGE
    page.write_text(page.read_text(encoding="utf-8").replace("0.971", "0.999", 1), encoding="utf-8")
    assert main(["--check"], repository) == 1
    assert "0.999" in capsys.readouterr().err


def test_a_readme_without_a_place_for_figures_is_an_error(repository: Path) -> None:
    readme = repository / README
    readme.write_text(readme.read_text(encoding="utf-8").replace(BEGIN, ""), encoding="utf-8")
    with pytest.raises(LookupError, match="figures stand between"):
        main(["--check"], repository)
