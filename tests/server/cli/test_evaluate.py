"""`skillguard evaluate`: what it refuses before a model is loaded."""

from pathlib import Path
from typing import Any

import pytest

from server.cli.evaluate import DECIDING, engine_settings
from server.cli.main import main
from server.demo import DEMO
from server.engines.options import EmbeddedOptions, VllmOptions

SUITE = ("--suite", "gsm8k=test.jsonl")
TOXICITY = ("--suite", f"toxicity={DEMO / 'data' / 'facts.test.jsonl'}")


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["--model", "m"], "--suite: got none"),
        (["--model", "m", *SUITE], "--artifacts: got none"),
        (["--url", "http://127.0.0.1:9", *SUITE], "--baseline-url: got none"),
        (["--baseline-url", "http://127.0.0.1:9", *SUITE], "got no --url"),
        (["--url", "u", "--baseline-url", "b", "--model", "m", *SUITE], "--url: got --model as well"),
        (["--url", "u", "--baseline-url", "b", "--together", *SUITE], "--url: got --together as well"),
        (["--limit", "0"], "--limit: got '0'"),
        (["--temperature", "3"], "--temperature: got '3'"),
        (["--frame", "no place"], "got frame 'no place'"),
        (["--suite", "nonsense=x"], "wanted KIND[:LABEL]=SRC"),
        (["--suite", "gsm8k=/nowhere/test.jsonl"], "no such file"),
        (["--artifacts", "/nowhere/ksd", "--limit", "1"], "no such folder"),
        (["--samples", "25"], "--samples: got 25 and no suite of kind toxicity"),
        (["--toxicity-words", "shipped"], "--toxicity-words: got no suite of kind toxicity"),
        ([*TOXICITY], "--suite toxicity: got neither of --toxicity-model and --toxicity-words"),
        ([*TOXICITY, "--samples", "25"], "--samples: got 25 with --temperature 0"),
        ([*TOXICITY, "--toxicity-model", "/nowhere/toxic-bert"], "got no such folder, wanted a local model folder"),
        ([*TOXICITY, "--toxicity-words", "/nowhere/words.txt"], "cannot be read"),
    ],
)
def test_refusals(arguments: list[str], wanted: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--output", str(tmp_path / "run"), *arguments]) == 1
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert wanted in printed
    assert not (tmp_path / "run").exists()


def test_an_unreachable_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    suite = tmp_path / "sums.jsonl"
    suite.write_text('{"prompt": "1+1", "answer": "2"}\n')
    servers = ["--url", "http://127.0.0.1:9", "--baseline-url", "http://127.0.0.1:9"]
    assert main(["evaluate", "--output", str(tmp_path / "run"), "--suite", f"prompts={suite}", *servers]) == 1
    assert "no skillguard server answers there" in capsys.readouterr().err


INDIFFERENT = {
    *("model", "served_name", "artifacts", "trusted_key_files"),  # of which name and digests are kept
    *("rehash", "allow_untested_runner", "tool_call_parser"),
    *("max_running", "max_waiting", "max_batch_tokens", "kv_cache_tokens"),  # how many at a time
}
"""Options of engines that decide no answer to a given prompt."""


def test_every_option_of_an_engine_is_kept_or_decides_nothing() -> None:
    known = EmbeddedOptions.model_fields.keys() | VllmOptions.model_fields.keys()
    assert not DECIDING & INDIFFERENT
    assert known == DECIDING | INDIFFERENT


@pytest.mark.parametrize(
    "change",
    [
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"judge": "conversation"},
        {"accept_template": True},
        {"max_model_tokens": 64},
        {"generation_config": "vllm"},
        {"max_waiting": 9},
    ],
)
def test_a_run_under_other_options_is_another_run(change: dict[str, Any]) -> None:
    kept, changed = (engine_settings("embedded", EmbeddedOptions(model="m", **more)) for more in ({}, change))
    assert (kept == changed) is (change == {"max_waiting": 9}), "the last is the negative control"
