"""Real prompts on a small real model: calibrated on the command line, then asked over HTTP.

The bounds are looser than the figures of `benchmarks.real_text.table`, which measures all of the data; here a few
hundred prompts show that the whole path works on text that nobody generated.
"""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path

import httpx
import pytest

from benchmarks.prompts.splits import LANGUAGES
from benchmarks.real_text.skills import FRAME
from benchmarks.serving import running_server
from server.cli.main import main

pytestmark = pytest.mark.real

ASKED = 100


def questions(path: Path, field: str, count: int, first: int = 0) -> list[str]:
    lines = path.read_text(encoding="utf-8").splitlines()[first : first + count]
    return [json.loads(line)[field] for line in lines]


async def abstained(url: str, model: str, texts: Sequence[str]) -> int:
    """How many of the texts are refused when asked in the frame."""
    gate = asyncio.Semaphore(16)

    async def ask(client: httpx.AsyncClient, text: str) -> bool:
        async with gate:
            body = {"model": model, "prompt": FRAME.format(text=text), "max_tokens": 1, "temperature": 0}
            response = await client.post("/v1/completions", json=body)
        response.raise_for_status()
        return bool(response.json()["choices"][0]["finish_reason"] == "content_filter")

    async with httpx.AsyncClient(base_url=url, timeout=120) as client:
        return sum(await asyncio.gather(*(ask(client, text) for text in texts)))


def test_calibrated_on_the_command_line_and_asked_over_http(shared_data: Path, tmp_path: Path) -> None:
    model, output = shared_data / "weights" / "realtext5m", tmp_path / "ksd-mathematics"
    command = [
        *("calibrate", "ksd", "--model", str(model), "--skill", "mathematics", "--output", str(output)),
        *("--forget", f"{shared_data}/gsm8k/train.jsonl#question", "--frame", FRAME, "--limit", "2500"),
        *("--variant", "pooled"),
        *("--retain", f"{shared_data}/mbpp/mbpp.jsonl?task_id=511..974#text"),
        *(item for lang in LANGUAGES for item in ("--retain", f"{shared_data}/xquad/{lang}.jsonl#question")),
        *("--retain", f"{shared_data}/mmlu/mmlu_dev.jsonl#question", "--retain", f"{shared_data}/wikitext2/valid.txt"),
    ]
    assert main(command) == 0
    mathematics = questions(shared_data / "gsm8k" / "test.jsonl", "question", ASKED)
    code = questions(shared_data / "mbpp" / "mbpp.jsonl", "text", ASKED, first=10)
    general = questions(shared_data / "mmlu" / "mmlu_test.jsonl", "question", ASKED, first=5000)
    with running_server("--model", str(model), "--artifacts", str(output)) as url:
        caught, *wrongly = (asyncio.run(abstained(url, "realtext5m", texts)) for texts in (mathematics, code, general))
    assert caught >= 0.85 * ASKED
    assert max(wrongly) <= 0.05 * ASKED
    with running_server("--model", str(model), "--unguarded") as url:
        assert asyncio.run(abstained(url, "realtext5m", mathematics)) == 0
