"""ESU's table on a real model: what is asked, and what the table shows."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks import unlearning
from benchmarks.measurements.results import Results
from benchmarks.measurements.unlearning import unlearning_section
from benchmarks.prompts.splits import LANGUAGES, Split, normal_form, rows
from benchmarks.report import _write
from server.evaluation.options import EvaluationOptions
from server.evaluation.suites import read_suites
from tests.test_prompts import write_data


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


def _check(data: Path, folder: Path) -> dict[str, int]:
    """Every column is a suite of `evaluate` that holds nothing a guard is calibrated on; returns items by label."""
    options = EvaluationOptions(max_tokens=unlearning.TOKENS)
    found = read_suites(unlearning.write(folder, unlearning.suites(data, 3, 1)), [], options)
    fitted = {normal_form(row["question"]) for name in ("gsm8k", "mmlu") for row in rows(data, name, Split.TRAIN)}
    for suite in found:
        assert not fitted & {normal_form(item.question.text) for item in suite.items}
    return {suite.label: len(suite.items) for suite in found}


def test_columns_are_suites_of_the_test_side(data: Path, tmp_path: Path) -> None:
    counts = _check(data, tmp_path)
    assert {"gsm8k", "mbpp", "mmlu", *LANGUAGES} <= set(counts)
    assert all(counts[language] == 1 for language in LANGUAGES)


@pytest.mark.real
def test_the_real_columns_are_full(shared_data: Path, tmp_path: Path) -> None:
    counts = _check(shared_data, tmp_path)
    assert counts == {"gsm8k": 3, "mbpp": 3, "mmlu": 6, "quantitative": 3, **dict.fromkeys(LANGUAGES, 1)}


def _rate(hits: int) -> dict[str, Any]:
    return {"hits": hits, "total": 4, "rate": hits / 4, "low": 0.0, "high": 1.0}


def test_the_table_has_the_models_own_accuracy_and_every_guards_share_of_it(tmp_path: Path) -> None:
    cell = {"accuracy": _rate(1), "relative": {"value": 0.5, "low": 0.25, "high": 0.75}, "abstained": _rate(2)}
    results = {
        "suites": [{"label": "gsm8k", "accuracy": _rate(2)}, {"label": "mbpp", "accuracy": _rate(0)}],
        "guards": [
            {
                "guard": "na-1.5-mathematics",
                "skills": ["mathematics"],
                "suites": {"gsm8k": cell, "mbpp": {**cell, "relative": None}},
            }
        ],
    }
    table = unlearning.table(results)
    told = {"name": "na-1.5-mathematics", "digest": "ab" * 32}
    more = {"model": "tiny", "settings": {"guards": {"none": [], "na-1.5-mathematics": [told]}}}
    _write(tmp_path / "benchmarks" / "results" / "unlearning.tiny.json", table, more)
    shown = unlearning_section(Results(tmp_path), "tiny")
    assert "na-1.5-mathematics `abababababab`" in shown
    assert "| no guard, accuracy | 0.50 of 4 | 0.00 of 4 |" in shown
    assert "| `na-1.5-mathematics` | 0.50 [0.25, 0.75], 2 refused | - |" in shown
