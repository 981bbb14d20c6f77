"""The examples in docs/examples, run as a reader would run them against the demo."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from benchmarks.serving import ROOT, running_server
from server.config import ServerConfig

pytestmark = pytest.mark.real

EXAMPLES = ROOT / "docs" / "examples"
DRIVEN = {"litellm.yaml"}
"""Run by `python -m benchmarks.clients --only litellm-guardrail`, which has LiteLLM's proxy."""
TRIED_BY_HAND = {"haproxy.cfg"}
"""docs/operating.md says how; it takes HAProxy and two servers."""
TEXT = ServerConfig().abstain_text


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running_server() as url:
        yield url


def run(url: str, *command: str) -> str:
    environment = {**os.environ, "SKILLGUARD_URL": url}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_is_run() -> None:
    run_here = {"chat_openai.py", "chat_langchain.py", "requests.sh"}
    assert {path.name for path in EXAMPLES.iterdir()} == DRIVEN | TRIED_BY_HAND | run_here


def test_openai(url: str) -> None:
    answer, withheld, stream, flagged, harmless = run(url, sys.executable, "docs/examples/chat_openai.py").splitlines()
    assert answer.startswith("stop | ")
    assert "Paris" in answer
    assert withheld == f"content_filter | {TEXT}"
    assert "Rome" in stream
    assert " True {'skill/mathematics': True} " in flagged
    assert " False {'skill/mathematics': False} " in harmless


def test_langchain(url: str) -> None:
    answer, withheld = run(url, sys.executable, "docs/examples/chat_langchain.py").splitlines()
    assert "Paris" in answer
    assert withheld == f"content_filter | {TEXT}"


def test_curl(url: str) -> None:
    said = run(url, "docs/examples/requests.sh")
    assert said.count('"finish_reason":"content_filter"') == 1
    assert "data: [DONE]" in said
    assert '"verdict":"abstain"' in said
    assert [said.count(f'"flagged":{each}') for each in ("true", "false")] == [1, 1]
    assert '"action":"BLOCKED"' in said
    assert '"status":"ready"' in said
