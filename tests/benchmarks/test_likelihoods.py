"""What is made of lm_eval's samples: what was withheld, and what agrees with vLLM's own server."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.likelihoods import ALL, VLLM, Item, asked_items, items, table
from benchmarks.measurements.likelihoods import likelihoods_section
from benchmarks.measurements.results import Results
from benchmarks.prompts.splits import Split, rows
from benchmarks.report import _write
from tests.test_prompts import write_data

GUARDED = "skillguard serve"


def _sample(index: int, right: int, *told: float) -> dict[str, Any]:
    """As lm_eval keeps it."""
    resps = [[[str(each), "False"]] for each in told]
    return {"doc_id": index, "doc": {"subject": "sums" if index else "places"}, "acc": float(right), "resps": resps}


def test_a_choice_that_is_withheld_is_none() -> None:
    samples = [_sample(1, 0, -9999.0, -9999.0), _sample(0, 1, -2.0, -1.5), _sample(2, 0, -3.0, -9999.0)]
    first, second, third = items(samples)
    assert first == Item("places", True, (-2.0, -1.5))
    assert first.taken == 1
    assert second == Item("sums", False, (None, None))
    assert third.told_C == (-3.0, None)
    assert third.taken is None


def test_the_table_compares_what_both_tell() -> None:
    itself = [Item("places", True, (-2.0, -1.0)), Item("sums", True, (-1.0, -4.0)), Item("sums", False, (-1.0, -3.0))]
    guarded = [Item("places", True, (-2.0, -1.25)), Item("sums", True, (None, None)), Item("sums", True, (-2.0, -1.0))]
    found = {(row["server"], row["subject"]): row for row in table({VLLM: itself, GUARDED: guarded})}
    assert found[VLLM, ALL]["right"] == 2
    assert found[VLLM, ALL]["same_choice"] == found[VLLM, ALL]["told"] == 3
    both = found[GUARDED, ALL]
    assert (both["right"], both["withheld"], both["told"]) == (3, 1, 2)
    assert (both["right_of_told"], both["vllm_right_of_told"], both["same_choice"]) == (2, 1, 1)
    assert both["largest_difference"] == 2.0
    assert found[GUARDED, "places"]["largest_difference"] == 0.25
    assert found[GUARDED, "sums"]["withheld"] == 1


def test_items_are_of_the_test_half_and_a_strange_subject_is_refused(tmp_path: Path) -> None:
    data = write_data(tmp_path)
    subjects = sorted({row["subject"] for row in rows(data, "mmlu", Split.TEST)})
    found = asked_items(data, subjects[:1], 1)
    assert [row["subject"] for row in found] == subjects[:1]
    with pytest.raises(SystemExit, match="got 'astrology', wanted subjects of MMLU"):
        asked_items(data, ["astrology"], 1)


def test_the_page_shows_scores_and_what_was_withheld(tmp_path: Path) -> None:
    assert likelihoods_section(Results(tmp_path)) == ""
    itself = [Item("sums", True, (-1.0, -4.0))]
    made = table({VLLM: itself, GUARDED: [Item("sums", False, (None, None))]})
    more = {"model": "tiny", "guards": ["ksd-sums"], "vllm": []}
    _write(tmp_path / "benchmarks" / "results" / "likelihoods.json", made, more)
    shown = likelihoods_section(Results(tmp_path))
    assert "| `skillguard serve` | all | 0 of 1 | 1 | 0 of 0 | 0 of 0 | 0 of 0 | - |" in shown
    assert "| `vllm serve` | sums | 1 of 1 | 0 | 1 of 1 | 1 of 1 | 1 of 1 | 0 |" in shown
