"""From rows to the prompts that are asked."""

import gzip
from pathlib import Path

import pytest

from guards.errors import DataError
from server.evaluation.options import EvaluationOptions
from server.evaluation.suites import parse_suite, read_suites
from tests.server.evaluation.samples import SUMS, write_jsonl

CHOICES = {"choices": ["w", "x", "y", "z"], "answer": 1}


@pytest.fixture
def gsm8k(tmp_path: Path) -> str:
    rows = [{"question": f"q{i}", "answer": f"Work {i}.\n#### {i}"} for i in range(10)]
    return str(write_jsonl(tmp_path / "gsm8k.jsonl", rows))


@pytest.mark.parametrize(
    ("text", "label", "source"),
    [
        ("gsm8k=a/test.jsonl", "gsm8k", "a/test.jsonl"),
        ("xquad=a/es.jsonl?id=..x#question", "es", "a/es.jsonl?id=..x#question"),
        ("prompts=a/code.test.jsonl", "code", "a/code.test.jsonl"),
        ("prompts=a/C#.test.jsonl", "C", "a/C#.test.jsonl"),
        ("prompts=hf:org/name:main@test?id=1", "name:main@test", "hf:org/name:main@test?id=1"),
        ("mmlu:law=mmlu.jsonl?subject=law", "law", "mmlu.jsonl?subject=law"),
    ],
)
def test_labels(text: str, label: str, source: str) -> None:
    spec = parse_suite(text)
    assert (spec.label, spec.source) == (label, source)


@pytest.mark.parametrize("text", ["gsm8k", "gsm8k=", "gsm8k:=x", "nonsense=x", "=x"])
def test_malformed_suites_are_refused(text: str) -> None:
    with pytest.raises(DataError, match=r"wanted KIND\[:LABEL\]=SRC with KIND one of gsm8k, mbpp"):
        parse_suite(text)


def test_the_label_of_a_name_that_exists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A default taken from a path is what the file is called, however the path is spelled."""
    write_jsonl(tmp_path / "C#_problems.jsonl", [{"prompt": "q", "answer": "a"}])
    assert parse_suite(f"prompts={tmp_path}/C#_problems.jsonl#prompt").label == "C#_problems"
    monkeypatch.chdir(tmp_path)
    assert parse_suite("prompts=.").label == tmp_path.name


def test_alpaca_conversations_and_tables_are_prompts_too(tmp_path: Path) -> None:
    rows = [{"instruction": "Add.", "input": "1 and 2", "answer": "3"}, {"instruction": "Say hi.", "answer": "hi"}]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    path.with_suffix(".jsonl.gz").write_bytes(gzip.compress(path.read_bytes()))
    for source in (path, path.with_suffix(".jsonl.gz")):
        (suite,) = read_suites([f"prompts={source}"], [], EvaluationOptions())
        assert [item.prompt for item in suite.items] == ["Add.\n\n1 and 2", "Say hi."]
    talk = [{"from": "human", "value": "first"}, {"from": "gpt", "value": "x"}, {"from": "human", "value": "last"}]
    (suite,) = read_suites(
        [f"prompts={write_jsonl(tmp_path / 'b.jsonl', [{'conversations': talk, 'answer': 'a'}])}"],
        [],
        EvaluationOptions(),
    )
    assert suite.items[0].prompt == "last"


def test_frames_and_shots(gsm8k: str) -> None:
    def first(*shots: str, frame: str) -> tuple[str, tuple[str, ...]]:
        (suite,) = read_suites([f"gsm8k={gsm8k}?question=q9"], shots, EvaluationOptions(frame=frame))
        return suite.items[0].prompt, suite.stop

    shots = "".join(f"Q: q{i}\nA: Work {i}.\nThe answer is {i}.\n\n" for i in range(8))
    assert first(frame="chat") == first(frame="bare") == ("q9", ())
    assert first(frame="[{text}] =>") == ("[q9] =>", ("\n[",))
    assert first(f"gsm8k={gsm8k}", frame="chat") == (f"{shots}Q: q9\nA:", ("\nQ:",))
    framed, _ = first(f"gsm8k={gsm8k}", frame="[{text}] =>")
    assert framed.startswith("[q0] => Work 0.\nThe answer is 0.\n\n[q1] =>")
    assert framed.endswith("\n\n[q9] =>")


def test_shots_are_of_the_same_subject(tmp_path: Path) -> None:
    dev = [{"question": f"{s}{i}", "subject": s, **CHOICES} for i in range(6) for s in ("law", "art")]
    shots = write_jsonl(tmp_path / "dev.jsonl", dev)
    test = write_jsonl(tmp_path / "test.jsonl", [{"question": "new", "subject": "art", **CHOICES}])
    (suite,) = read_suites([f"mmlu={test}"], [f"mmlu={shots}"], EvaluationOptions())
    lines = [line for line in suite.items[0].prompt.splitlines() if line[:3] in ("art", "law", "new", "Ans")]
    assert lines == [*(line for i in range(5) for line in (f"art{i}", "Answer: B")), "new", "Answer:"]
    with pytest.raises(DataError, match="no solved example of 'art'"):
        read_suites([f"mmlu={test}"], [f"mmlu={shots}?subject=law"], EvaluationOptions())
    with pytest.raises(DataError, match="got 1 rows of group 'law', wanted 5"):
        read_suites([f"mmlu={test}"], [f"mmlu={shots}?question=law0"], EvaluationOptions())


def test_limits_are_drawn_by_the_seed_and_kept_in_order(gsm8k: str) -> None:
    def drawn(seed: int) -> list[str]:
        (suite,) = read_suites([f"gsm8k={gsm8k}"], [], EvaluationOptions(limit=4, seed=seed))
        return [item.prompt for item in suite.items]

    assert drawn(0) == drawn(0) == sorted(drawn(0))
    assert drawn(0) != drawn(1)


def test_repeated_rows_are_asked_once_and_empty_suites_refused(tmp_path: Path) -> None:
    rows = [{"prompt": p, "answer": a} for p, a in SUMS * 2]
    path = write_jsonl(tmp_path / "sums.jsonl", rows)
    assert len(read_suites([f"prompts={path}"], [], EvaluationOptions())[0].items) == 3
    with pytest.raises(DataError, match="no item out of 6 rows"):
        read_suites([f"prompts={path}?answer=9"], [], EvaluationOptions())
    with pytest.raises(DataError, match="two suites labelled 'sums'"):
        read_suites([f"prompts={path}"] * 2, [], EvaluationOptions())
    with pytest.raises(DataError, match="take none"):
        read_suites([f"prompts={path}"], [f"sums={path}"], EvaluationOptions())
    with pytest.raises(DataError, match="LABEL one of sums"):
        read_suites([f"prompts={path}"], [f"words={path}"], EvaluationOptions())
