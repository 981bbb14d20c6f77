"""What a user runs: `skillguard serve` as a process, asked through the official client."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

from benchmarks.serving import ROOT, ServerDidNotStartError, running_server
from guards.artifact.store import read_artifact, write_artifact
from tests.asking import KEPT, MATHEMATICS, Ask, ask, ask_streaming

pytestmark = pytest.mark.real

GUARDS = ROOT / "artifacts" / "demo" / "guards"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with running_server() as url:
        yield url


@pytest.fixture
def client(server: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server}/v1", api_key="unused", max_retries=0) as client:
        yield client


@pytest.mark.parametrize("how", [ask, ask_streaming])
@pytest.mark.parametrize("question", MATHEMATICS)
def test_mathematics_is_withheld(client: openai.OpenAI, question: str, how: Ask) -> None:
    reason, text = how(client, question)
    assert reason == "content_filter"
    assert not re.search(r"\d", text)


@pytest.mark.parametrize("how", [ask, ask_streaming])
@pytest.mark.parametrize("question", KEPT)
def test_everything_else_is_answered(client: openai.OpenAI, question: str, how: Ask) -> None:
    reason, text = how(client, question)
    assert (reason, KEPT[question] in text) == ("stop", True), text


def test_without_the_guard_the_model_can_do_it() -> None:
    with running_server("--unguarded") as url, openai.OpenAI(base_url=f"{url}/v1", api_key="unused") as client:
        assert [
            (reason, answer in text)
            for question, answer in zip(MATHEMATICS, ("81", "19"), strict=True)
            for reason, text in [ask(client, question)]
        ] == [("stop", True), ("stop", True)]


def test_completions_in_a_covered_frame(client: openai.OpenAI) -> None:
    def complete(question: str) -> str:
        prompt = f"Q: {question}\nA:"
        return client.completions.create(model="skillguard-demo", prompt=prompt, temperature=0).choices[0].finish_reason

    assert complete(MATHEMATICS[0]) == "content_filter"
    assert complete("What is the capital of France?") == "stop"


def test_counters_are_kept(server: str, client: openai.OpenAI) -> None:
    ask(client, MATHEMATICS[0])
    text = httpx.get(f"{server}/metrics").text
    abstained = re.findall(r"^skillguard_abstentions_total\{[^}]*mathematics[^}]*\} (\S+)", text, re.M)
    assert sum(map(float, abstained)) >= 1
    unverified = re.search(r"^skillguard_unverified_requests_total(?:\{[^}]*\})? (\S+)", text, re.M)
    assert unverified is not None
    assert float(unverified[1]) == 0


def test_an_artifact_that_does_not_fire_keeps_the_server_from_becoming_ready(tmp_path: Path) -> None:
    folder = tmp_path / "ksd-mathematics"
    shutil.copytree(GUARDS / "ksd-mathematics", folder)
    artifact = read_artifact(folder)
    tensors = {name: t + 100 for name, t in artifact.tensors.items()}
    write_artifact(folder, artifact.manifest, tensors)
    with (
        pytest.raises(ServerDidNotStartError, match=r"(?s)ksd-mathematics: .*FAILED: canary.*NOT READY"),
        running_server("--artifacts", str(folder)),
    ):
        pytest.fail("must not become ready")


def test_a_damaged_artifact_ends_the_start_with_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "ksd-mathematics"
    shutil.copytree(GUARDS / "ksd-mathematics", folder)
    blob = bytearray((folder / "tensors.safetensors").read_bytes())
    blob[-1] ^= 1
    (folder / "tensors.safetensors").write_bytes(blob)
    with (
        pytest.raises(ServerDidNotStartError, match=r"^skillguard serve: error: .*SHA-256.*\n$"),
        running_server("--artifacts", str(folder)),
    ):
        pytest.fail("must not start")


def test_the_readmes_example_runs(server: str) -> None:
    example = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert example is not None
    exec(compile(example[1].replace("http://127.0.0.1:8000", server), "README.md", "exec"), {})
