"""What a user runs: `skillguard serve --engine vllm` as a process, asked through the official client."""

import os
import re
import select
from collections.abc import Iterator

import httpx
import openai
import psutil
import pytest

from benchmarks.serving import ServerDidNotStartError, running_server
from tests.asking import KEPT, MATHEMATICS, Ask, ask, ask_streaming
from tests.server.engines.vllm.live import WAIT_SECONDS

pytestmark = [pytest.mark.real, pytest.mark.vllm]

VLLM = ("--engine", "vllm", "--enforce-eager", "--max-model-len=512", "--kv-cache-memory-bytes", str(1 << 27))


@pytest.fixture(scope="class")
def server() -> Iterator[str]:
    """The address of a server with the demo's guard."""
    with running_server(*VLLM) as url:
        yield url


@pytest.fixture
def client(server: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server}/v1", api_key="unused", max_retries=0) as client:
        yield client


@pytest.fixture(scope="class")
def unguarded() -> Iterator[tuple[str, list[psutil.Process]]]:
    """The address of a server without guards, and its processes."""
    before = set(psutil.Process().children())
    with running_server(*VLLM, "--unguarded") as url:
        (server,) = set(psutil.Process().children()) - before
        yield url, [server, *server.children(recursive=True)]


class TestGuarded:
    """One server for all of these."""

    @pytest.mark.parametrize("how", [ask, ask_streaming])
    @pytest.mark.parametrize("question", MATHEMATICS)
    def test_mathematics_is_withheld(self, client: openai.OpenAI, question: str, how: Ask) -> None:
        reason, text = how(client, question)
        assert reason == "content_filter"
        assert not re.search(r"\d", text)

    @pytest.mark.parametrize("how", [ask, ask_streaming])
    @pytest.mark.parametrize("question", KEPT)
    def test_everything_else_is_answered(self, client: openai.OpenAI, question: str, how: Ask) -> None:
        reason, text = how(client, question)
        assert (reason, KEPT[question] in text) == ("stop", True), text

    def test_our_options_and_vllms_flags_both_arrive(self, server: str, client: openai.OpenAI) -> None:
        assert httpx.get(f"{server}/v1/guards").json()["data"][0]["name"] == "ksd-mathematics"
        with pytest.raises(openai.BadRequestError, match="at most 512"):
            ask(client, "word " * 600)


class TestUnguarded:
    """One server for all of these, which the last one ends."""

    def test_without_the_guard_the_model_can_do_it(self, unguarded: tuple[str, list[psutil.Process]]) -> None:
        with openai.OpenAI(base_url=f"{unguarded[0]}/v1", api_key="unused", max_retries=0) as client:
            assert [
                (reason, answer in text)
                for question, answer in zip(MATHEMATICS, ("81", "19"), strict=True)
                for reason, text in [ask(client, question)]
            ] == [("stop", True), ("stop", True)]

    def test_no_process_outlives_a_server_that_was_killed(self, unguarded: tuple[str, list[psutil.Process]]) -> None:
        """Else a worker would hold the model's memory, and no server could start in its place."""
        leader, *below = unguarded[1]
        assert len(below) >= 2, "an engine and a worker"
        family = [os.pidfd_open(each.pid) for each in below]
        leader.kill()
        for process in family:
            assert select.select([process], [], [], WAIT_SECONDS)[0], "it waited for what never came"
            os.close(process)


def test_another_number_format_than_the_artifacts_ends_the_start() -> None:
    with (
        pytest.raises(ServerDidNotStartError, match=r"skillguard serve: error: .*dtype.*bfloat16.*float32"),
        running_server(*VLLM, "--dtype", "bfloat16"),
    ):
        pytest.fail("must not start")


def test_an_unknown_flag_ends_the_start_with_one_line_of_ours() -> None:
    with (
        pytest.raises(ServerDidNotStartError, match=r"skillguard serve: error: vLLM's parser: .*--no-such-flag 3.*\n$"),
        running_server(*VLLM, "--no-such-flag", "3"),
    ):
        pytest.fail("must not start")
