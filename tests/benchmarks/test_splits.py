"""Nothing that is measured is trained on."""

from pathlib import Path

import pytest

from benchmarks.prompts.skills import SKILLS, Skill, forget_source, retain_sources
from benchmarks.prompts.splits import (
    DATA_SETS,
    REST,
    SUBJECTS,
    XQUAD,
    Split,
    contexts,
    mmlu_half,
    normal_form,
    read,
    rows,
    some,
    source,
    subject_group,
)
from tests.benchmarks.made_up import SHARED_QUESTION, made_up_data


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made-up rows."""
    return made_up_data(tmp_path_factory.mktemp("data"))


def texts(data: Path, name: str, split: Split) -> set[str]:
    return {normal_form(text) for text in read(data, name, split).texts}


def disjoint_and_aligned(data: Path) -> None:
    """No text of one side is on the other, in any data set, and XQuAD's sides are the same in every language."""
    train = set().union(*(texts(data, name, Split.TRAIN) for name in DATA_SETS))
    test = set().union(*(texts(data, name, Split.TEST) for name in DATA_SETS))
    assert train
    assert test
    assert not train & test
    for split in Split:
        assert len({tuple(row["id"] for row in rows(data, name, split)) for name in XQUAD}) == 1
    for name in XQUAD:
        language = name.removeprefix("xquad-")
        assert not set(contexts(data, language, Split.TRAIN).texts) & set(contexts(data, language, Split.TEST).texts)


def test_sides_share_no_text(data: Path) -> None:
    disjoint_and_aligned(data)


def test_a_train_row_that_is_measured_too_is_left_out(data: Path) -> None:
    assert len(rows(data, "gsm8k", Split.TRAIN)) == 60
    assert normal_form(SHARED_QUESTION) in texts(data, "gsm8k", Split.TEST)
    assert [row["id"] for row in rows(data, "xquad-zh", Split.TRAIN)] == ["0002", "0003"]


def test_mbpp_is_cut_by_task(data: Path) -> None:
    assert [row["task_id"] for row in rows(data, "mbpp", Split.TRAIN)] == [1, 10, *range(511, 560)]
    assert [row["task_id"] for row in rows(data, "mbpp", Split.TEST)] == [11, 510]


def test_mmlu_is_dealt_by_question_alone(data: Path) -> None:
    halves = [mmlu_half(f"question {index}") for index in range(1000)]
    assert 400 < halves.count(Split.TEST) < 600
    assert halves == [mmlu_half(f" Question  {index}\n") for index in range(1000)]
    assert halves != [mmlu_half(f"question {index}", seed=1) for index in range(1000)]
    assert {row["subject"] for row in rows(data, "mmlu", Split.TRAIN)} > {"virology"}


def test_subjects_fall_into_one_group(data: Path) -> None:
    assert [subject_group(name) for name in ("elementary_mathematics", "machine_learning", "virology")] == [
        "mathematics",
        "computing",
        REST,
    ]
    parts = [read(data, "mmlu", Split.TEST, groups=(group,)).texts for group in (*SUBJECTS, REST)]
    assert sorted(text for part in parts for text in part) == sorted(read(data, "mmlu", Split.TEST).texts)


def test_a_source_says_what_it_holds(data: Path) -> None:
    found = read(data, "mbpp", Split.TEST, text=lambda row: row["code"])
    assert (found.name, found.texts[0]) == ("mbpp test", "def add_11(x):\r\n  return x + 11")
    assert source("x", ["a", " ", "a", "b"]).texts == ("a", "b")
    assert some(source("x", "abc"), 2).texts == some(source("x", "abc"), 2).texts
    assert some(source("x", "abc"), 5).texts == ("a", "b", "c")


@pytest.mark.parametrize("skill", SKILLS, ids=lambda skill: skill.name)
def test_guards_are_fitted_on_train_sides_only(data: Path, skill: Skill) -> None:
    forget, retain = forget_source(data, skill), retain_sources(data, skill)
    assert all(part.name.split()[1] == "train" for part in (forget, *retain))
    kept = {text for part in retain for text in part.texts}
    assert not kept & set(forget.texts)
    if skill.name == "mathematics":
        assert not kept & set(read(data, "mmlu", Split.TRAIN, groups=("mathematics",)).texts)


@pytest.mark.real
def test_the_measuring_data_are_dealt_the_same_way(shared_data: Path) -> None:
    disjoint_and_aligned(shared_data)
    counts = {name: [len(rows(shared_data, name, split)) for split in Split] for name in DATA_SETS}
    assert counts["gsm8k"] == [7473, 1319]
    assert counts["mbpp"] == [471, 500]
    assert counts["mmlu"] == [7254, 7069]
    assert {tuple(counts[name]) for name in XQUAD} == {(594, 200)}
