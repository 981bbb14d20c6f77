"""The table's arithmetic, on made-up scores."""

import pytest
import torch
from rich.console import Console
from torch import Tensor

from benchmarks.real_text.heldout import Predicted
from benchmarks.real_text.rows import POOLED, Row, detection_rows, heldout_rows
from benchmarks.real_text.sheets import heldout_sheet, matrix, matrix_sheet, shortfalls, summary_sheet
from benchmarks.real_text.skills import MEASURED, SKILLS, Meaning, Skill, meaning
from server.evaluation.figures import LANGUAGES

MATHEMATICS, CODE = SKILLS[:2]
ENGLISH = next(skill for skill in SKILLS if skill.name == "language-en")


def scores(hits: dict[str, int], total: int = 100) -> dict[str, Tensor]:
    """For every set so many ratios inside, at 1 at most, and the others outside."""
    inside, outside = torch.full((total,), 1.0), torch.full((total,), 2.0)
    return {
        each.name: torch.cat([inside[: hits.get(each.name, 0)], outside[hits.get(each.name, 0) :]]) for each in MEASURED
    }


def perfect(skill: Skill) -> dict[str, Tensor]:
    own = [each.name for each in MEASURED if meaning(skill, each) is Meaning.OWN]
    return scores(dict.fromkeys(own, 100))


def row(rows: list[Row], test: str) -> Row:
    (found,) = (each for each in rows if each["test"] == test)
    return found


def test_a_hit_means_recall_or_a_false_abstention() -> None:
    rows = detection_rows(MATHEMATICS, scores({"gsm8k": 90, "mmlu-mathematics": 40, "mbpp": 3}))
    own, transfer, other = row(rows, "gsm8k"), row(rows, "mmlu-mathematics"), row(rows, "mbpp")
    assert (own["recall"], own["false_abstention"], own["auroc"]) == (0.9, None, None)
    assert (transfer["recall"], transfer["false_abstention"], transfer["meaning"]) == (0.4, None, "transfer")
    assert (other["recall"], other["false_abstention"]) == (None, 0.03)
    assert own["low"] < 0.9 < own["high"]
    assert (own["hits"], own["examples"]) == (90, 100)


def test_mathematics_subjects_are_no_false_abstentions_of_mathematics_alone() -> None:
    found = scores({"gsm8k": 100, "mmlu-mathematics": 100})
    assert row(detection_rows(MATHEMATICS, found), POOLED)["hits"] == 0
    assert row(detection_rows(CODE, found), POOLED)["hits"] == 200


def test_all_others_are_one_row_over_every_example() -> None:
    together = row(detection_rows(MATHEMATICS, scores({"gsm8k": 100, "mbpp": 5, "wikitext2": 2})), POOLED)
    others = [each for each in MEASURED if meaning(MATHEMATICS, each) is Meaning.OTHER]
    assert (together["hits"], together["examples"]) == (7, 100 * len(others))
    assert together["auroc"] < 1


def test_english_is_measured_against_languages_only() -> None:
    rows = detection_rows(ENGLISH, perfect(ENGLISH))
    assert {each["test"] for each in rows} == {POOLED, *(f"xquad-{language}" for language in LANGUAGES)}


def test_the_matrix_has_esus_order_and_gaps() -> None:
    german = next(skill for skill in SKILLS if skill.name == "language-de")
    rows = detection_rows(german, scores({"xquad-de": 97, "xquad-ar": 5}))
    found = matrix(rows)
    place = LANGUAGES.index("de")
    assert found[place][place] == 0.97
    assert found[place][LANGUAGES.index("ar")] == 0.05
    assert all(share != share for line in found[:place] for share in line)
    assert matrix_sheet("m", rows).lines[0] == ("en", *"-" * len(LANGUAGES))


def test_what_falls_short_is_said() -> None:
    good = [each for skill in SKILLS for each in detection_rows(skill, perfect(skill))]
    assert list(shortfalls(good)) == []
    assert len(list(shortfalls([]))) == 2 + len(LANGUAGES) ** 2
    bad = detection_rows(MATHEMATICS, scores({"gsm8k": 97, "mbpp": 100}))
    rest = [each for each in good if each["forget"] != "mathematics"]
    said = list(shortfalls([*bad, *rest]))
    assert [line.split()[1] for line in said] == ["recall", "false", "AUROC"]


def test_held_out_rows_are_relative_to_no_guard() -> None:
    before = Predicted(*(torch.tensor(x, dtype=torch.float64) for x in ([10.0, 10.0], [20.0, 20.0], [6.0, 2.0])))
    (found,) = heldout_rows(CODE, {"gsm8k": before}, {"gsm8k": torch.tensor([False, True])}, 64)
    assert (found["documents"], found["refused"]) == (2, 1)
    assert found["relative_accuracy"] == pytest.approx(0.75)
    assert found["relative_perplexity"] > 1
    assert heldout_sheet("h", [found]).lines[0][:2] == ("code", "0.750")
    nothing = Predicted(before.token_D, before.nll_D, torch.zeros(2, dtype=torch.float64))
    (found,) = heldout_rows(CODE, {"gsm8k": nothing}, {"gsm8k": torch.tensor([False, True])}, 64)
    assert heldout_sheet("h", [found]).lines[0][:2] == ("code", "-")


def test_sheets_are_readable() -> None:
    rows = detection_rows(MATHEMATICS, scores({"gsm8k": 90, "mmlu-mathematics": 40, "mbpp": 3}))
    sheet = summary_sheet("t", rows)
    assert sheet.markdown.startswith("**t**\n\n| forget | recall [95 %] |")
    assert sheet.lines[0][0:2] == ("mathematics", "0.900 [0.824, 0.951]")
    assert sheet.lines[0][3] == "0.030 mbpp"
    with (console := Console(width=200)).capture() as shown:
        sheet.show(console)
    assert "mmlu-mathematics" in shown.get()
