"""The load generator: what it sends and when, and what it makes of answers."""

import asyncio
import random
from collections import Counter
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path

import pytest
from aiohttp import web

from benchmarks.load.ceiling import Sender
from benchmarks.load.client import Answer, Client, LoadError, body_of
from benchmarks.load.compare import Ask, alternate, compared
from benchmarks.load.figures import figures, requests_per_second
from benchmarks.load.loops import closed, opened
from benchmarks.load.prompts import FORGOTTEN, HARMLESS, LONG, SHARES, Prompt, mixed
from benchmarks.measurements.load import load_section
from benchmarks.measurements.results import Results

TOKENS = 5
ANSWER = Answer(HARMLESS, due=0.0, first=1.0, last=3.0, tokens=5, finish="stop", events=7)


async def _sender() -> tuple[asyncio.Server, str]:
    server = await asyncio.get_running_loop().create_server(lambda: Sender(TOKENS), "127.0.0.1", 0)
    return server, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"


def test_every_job_is_asked_once_and_read_to_its_end() -> None:
    jobs = [(kind, b"{}") for kind in "abcdefg"]

    async def run() -> list[Answer]:
        server, url = await _sender()
        async with server, Client(url) as client:
            return await closed(client, jobs, clients=3)

    answers = asyncio.run(run())
    assert sorted(each.kind for each in answers) == [kind for kind, _ in jobs]
    for each in answers:
        assert (each.tokens, each.finish, each.events) == (TOKENS, "length", TOKENS + 3)
        assert each.due <= each.first <= each.last


class _Slow:
    """Counts how many requests wait for their answer; none is answered before so many do."""

    def __init__(self, wanted: int) -> None:
        self._enough = asyncio.Barrier(wanted)
        self.most = self._waiting = 0

    async def ask(self, kind: str, body: bytes, *, due: float | None = None) -> Answer:
        self._waiting += 1
        self.most = max(self.most, self._waiting)
        await self._enough.wait()
        self._waiting -= 1
        return replace(ANSWER, kind=kind, due=due or 0.0)


def test_a_closed_loop_has_so_many_clients_and_an_open_one_waits_for_none() -> None:
    jobs = [("a", b"")] * 6

    async def run() -> tuple[int, int, list[float]]:
        two, all_of_them = _Slow(2), _Slow(6)
        await closed(two, jobs, clients=2)  # type: ignore[arg-type]
        answers = await opened(all_of_them, jobs, rate=1000)  # type: ignore[arg-type]
        return two.most, all_of_them.most, [each.due for each in answers]

    of_two, of_all, due = asyncio.run(run())
    assert (of_two, of_all) == (2, 6)
    rng = random.Random(0)
    waits = [rng.expovariate(1000) for _ in jobs]
    assert [second - first for first, second in pairwise(due)] == pytest.approx(waits[1:])


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ('{"error": {"message": "too many"}}', 429, "status 429: .*too many"),
        ('{"choices": [{"finish_reason": "stop"}]}', 200, "without finish_reason or usage"),
    ],
)
def test_what_cannot_be_measured_by_is_no_answer(body: str, status: int, said: str) -> None:
    async def refuse(_: web.Request) -> web.Response:
        return web.Response(text=body, status=status, content_type="application/json")

    async def run() -> None:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", refuse)
        runner = web.AppRunner(app)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            async with Client(f"http://127.0.0.1:{runner.addresses[0][1]}/v1") as client:
                await client.ask("a", b"{}")
        finally:
            await runner.cleanup()

    with pytest.raises(LoadError, match=said):
        asyncio.run(run())


def test_mixed_prompts_hold_their_shares_and_are_the_same_for_a_seed() -> None:
    prompts = list(islice(mixed("demo", SHARES, 8, seed=1), 40))
    assert Counter(each.kind for each in prompts) == {HARMLESS: 24, LONG: 8, FORGOTTEN: 8}
    assert prompts == list(islice(mixed("demo", SHARES, 8, seed=1), 40))
    assert prompts != list(islice(mixed("demo", SHARES, 8, seed=2), 40))


def test_a_stream_asks_for_usage() -> None:
    body = body_of(Prompt(HARMLESS, "Hi.", 8), "m", stream=True, more={"ignore_eos": True})
    assert b'"include_usage": true' in body
    assert b'"ignore_eos": true' in body
    assert b"stream_options" not in body_of(Prompt(HARMLESS, "Hi.", 8), "m", stream=False, more={})


def test_abstentions_are_timed_apart() -> None:
    withheld = replace(ANSWER, tokens=1, last=1.5, first=1.5, finish="content_filter")
    found = figures([ANSWER, withheld])
    assert (found["requests"], found["abstained"], found["tokens"]) == (2, 1, 6)
    assert found["requests_per_second"] == round(2 / 3, 2)
    assert found["abstention_ms"]["p50"] == 1500
    assert found["first_token_ms"]["p50"] == 1000
    assert found["per_token_ms"]["p50"] == 500
    assert figures([ANSWER])["abstention_ms"] is None


def test_sides_are_asked_in_turns_with_the_same_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.load.compare.SETTLE_SECONDS", 0)
    asked: list[tuple[str, int]] = []

    def side(name: str, seconds: float) -> Ask:
        async def ask(seed: int) -> list[Answer]:
            asked.append((name, seed))
            return [replace(ANSWER, last=seconds)]

        return ask

    found = asyncio.run(alternate({"theirs": side("theirs", 3.0), "ours": side("ours", 2.0)}, rounds=3))
    assert [name for name, _ in asked] == ["ours", "theirs", "theirs", "ours"] * 2
    assert all(first[1] == second[1] for first, second in zip(asked[::2], asked[1::2], strict=True))
    told = compared(found, requests_per_second)
    assert told["rounds"] == 3
    assert "ratio" not in told["sides"]["theirs"]
    assert told["sides"]["ours"]["ratio"] == 1.5


def test_nothing_measured_is_no_section(tmp_path: Path) -> None:
    assert load_section(Results(tmp_path)) == ""
