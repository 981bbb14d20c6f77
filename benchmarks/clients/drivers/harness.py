"""lm_eval on the tasks of `benchmarks/lm_eval`: one that generates, one of log-likelihoods. Few items."""

import json
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.clients.drivers import steps as s

_TASKS = Path(__file__).resolve().parents[2] / "lm_eval"
_ITEMS: tuple[tuple[str, tuple[str, ...], int], ...] = (
    (s.QUESTION, ("Rome", "Paris", "Madrid", "Berlin"), 1),
    ("What is the capital of Germany?", ("Rome", "Paris", "Madrid", "Berlin"), 3),
    ("What is the capital of Italy?", ("Rome", "Paris", "Madrid", "Berlin"), 0),
    (s.REFUSED, ("80", "81", "82", "83"), 1),
)
_SUMS = 1
"""The last items, which a guard withholds where they are asked in a frame that it covers."""


def steps(client: str, served: s.Served) -> s.Steps:
    """What the client is made to do."""
    folder = Path(tempfile.mkdtemp())
    data = folder / "mmlu" / "mmlu_test.jsonl"
    data.parent.mkdir()
    lines = [{"question": asked, "choices": choices, "answer": right} for asked, choices, right in _ITEMS]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")

    @cache
    def samples(task: str) -> list[dict[str, Any]]:
        model = f"model={served.model},base_url={served.url}/completions,max_retries=1,tokenizer={served.tokenizer}"
        options = ["--tasks", task, "--include_path", str(_TASKS), "--output_path", str(folder / task)]
        command = [sys.executable, "-m", "lm_eval", "run", "--model", "local-completions", "--model_args", model]
        done = subprocess.run(
            [*command, *options, "--log_samples"], cwd=folder, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise s.StepFailedError(f"lm_eval: {done.stderr[-400:]}")
        (file,) = (folder / task).rglob("samples_*.jsonl")
        found = map(json.loads, file.read_text(encoding="utf-8").splitlines())
        return sorted(found, key=lambda sample: int(sample["doc_id"]))

    def texts() -> list[str]:
        return [str(sample["resps"][0][0]) for sample in samples("skillguard_mmlu")]

    def answer() -> str:
        found = samples("skillguard_mmlu")
        if len(found) != len(_ITEMS) or not all(texts()[:-_SUMS]):
            raise s.StepFailedError(f"wanted an answer to each of {len(_ITEMS)} items, got {texts()}")
        return f"exact_match {sum(sample['exact_match'] for sample in found) / len(found):.2f} of {len(found)} items"

    def likelihoods() -> str:
        found = samples("skillguard_mmlu_choices")
        told = [float(choice[0][0]) for sample in found for choice in sample["resps"]]
        if len(told) != 4 * len(_ITEMS):
            raise s.StepFailedError(f"wanted {4 * len(_ITEMS)} log-likelihoods, got {told}")
        withheld = sum(each <= -9999 for each in told)
        accuracy = sum(sample["acc"] for sample in found) / len(found)
        return f"acc {accuracy:.2f} of {len(found)} items; {withheld} of {len(told)} continuations withheld"

    return {
        s.ANSWER: answer,
        s.LIKELIHOODS: likelihoods,
        s.ABSTENTION: lambda: s.check_refusal(texts()[-1], served.text),
    }
