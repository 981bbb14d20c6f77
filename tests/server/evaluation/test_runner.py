"""How items are asked."""

from pathlib import Path
from typing import Any

from server.evaluation.options import EvaluationOptions
from server.evaluation.runner import item_key, sampling_of
from server.evaluation.suites import Suite, read_suites
from tests.server.evaluation.samples import arm, engine, write_jsonl

SAMPLED = EvaluationOptions(temperature=0.8, top_p=0.95, max_tokens=99, frame="Q: {text}\nA:")


def suite(folder: Path, kind: str, *rows: dict[str, Any], options: EvaluationOptions = SAMPLED) -> Suite:
    (read,) = read_suites([f"{kind}={write_jsonl(folder / 'rows.jsonl', rows)}"], [], options)
    return read


def test_what_is_sampled_has_a_seed_of_its_own(tmp_path: Path) -> None:
    asked = suite(tmp_path, "gsm8k", *({"question": f"q{i}", "answer": f"#### {i}"} for i in range(3)))
    found = [sampling_of(asked, item, SAMPLED) for item in asked.items]
    seeds = [sampling.pop("seed") for sampling in found]
    assert len(set(seeds)) == 3
    assert found == [{"max_tokens": 99, "temperature": 0.8, "top_p": 0.95, "stop": ["\nQ:"]}] * 3
    alone = suite(tmp_path, "gsm8k", {"question": "q2", "answer": "#### 2"})
    assert sampling_of(alone, alone.items[0], SAMPLED)["seed"] == seeds[2]


def test_what_a_benchmark_fixes_is_not_changed(tmp_path: Path) -> None:
    passage = suite(tmp_path, "xquad:es", {"context": "c", "question": "q", "answers": ["a"]})
    assert sampling_of(passage, passage.items[0], SAMPLED) == {"max_tokens": 24, "temperature": 0.0, "stop": ["\nQ:"]}
    letter = suite(tmp_path, "mmlu", {"question": "q", "choices": list("wxyz"), "answer": 0})
    assert sampling_of(letter, letter.items[0], SAMPLED)["max_tokens"] == 1


def test_keys_differ_by_guard_frame_and_sampling(tmp_path: Path) -> None:
    row = {"prompt": "1+1", "answer": "2"}
    changes: list[dict[str, Any]] = [{}, {"frame": "bare"}, {"max_tokens": 9}, {"temperature": 0.5}, {"seed": 1}]
    keys = []
    for change in changes:
        options = EvaluationOptions(**{"temperature": 1.0, **change})
        asked = suite(tmp_path, "prompts:sums", row, options=options)
        keys += [item_key(each, asked, asked.items[0], options) for each in (arm(engine()), arm(engine("1+1")))]
    assert len(set(keys)) == len(keys)
