"""A tenant's limits: they hold for all its keys together, and for nobody else."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.auth import Caller, Role, TenantPolicy, new_key
from server.engines.events import Chunk
from server.engines.scripted.engine import ScriptedEngine
from server.engines.scripted.scripts import Script, abstention, answer, guard, hit
from server.errors import LimitError
from server.limits import Bucket, Limiter, spending
from tests.server.harness import CHAT, CHECKS, Exchange, chat, completion, keys_file, serving, write_tenants

ANN, BOB, CAT = (new_key(name, Role.USER) for name in ("ann", "bob", "cat"))


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def caller(tenant: str = "team", **policy: Any) -> Caller:
    return Caller(name="ann", role=Role.USER, tenant=tenant, policy=TenantPolicy(**policy))


def use(limiter: Limiter, of: Caller, tokens: int = 0) -> None:
    """One request that is over at once."""
    with limiter.admitted(of) as spend:
        spend(tokens)


def retry_after(limiter: Limiter, of: Caller) -> int:
    with pytest.raises(LimitError) as caught:
        use(limiter, of)
    assert of.tenant in str(caught.value)
    return caught.value.retry_after_seconds


def test_requests_a_minute() -> None:
    limiter, team = Limiter(clock := Clock()), caller(requests_per_minute=3)
    for _ in range(3):
        use(limiter, team)
    assert retry_after(limiter, team) == 20
    use(limiter, caller("other", requests_per_minute=3))
    clock.now += 19.9
    assert retry_after(limiter, team) == 1, "a refused request costs nothing"
    clock.now += 0.2
    use(limiter, team)
    assert retry_after(limiter, team) == 20
    clock.now += 3600
    for _ in range(3):
        use(limiter, team)
    assert retry_after(limiter, team) == 20, "an hour of rest saves no more than a minute's"


def test_tokens_a_minute_may_be_owed() -> None:
    limiter, team = Limiter(clock := Clock()), caller(tokens_per_minute=60)
    use(limiter, team, tokens=59)
    use(limiter, team, tokens=90)
    assert retry_after(limiter, team) == 90
    clock.now += 90
    use(limiter, team)


def test_requests_at_a_time() -> None:
    limiter, team = Limiter(Clock()), caller(concurrent_requests=2)
    with limiter.admitted(team):
        with limiter.admitted(team):
            assert retry_after(limiter, team) == 1
            use(limiter, caller("other", concurrent_requests=2))
        use(limiter, team)
    with pytest.raises(RuntimeError), limiter.admitted(team):
        raise RuntimeError("the request failed")
    with limiter.admitted(team):
        use(limiter, team)


def test_without_limits_nothing_is_refused() -> None:
    limiter = Limiter(Clock())
    for _ in range(1000):
        use(limiter, caller(), tokens=10**9)


def test_a_changed_limit_forgets_nothing() -> None:
    limiter = Limiter(Clock())
    for _ in range(3):
        use(limiter, caller(requests_per_minute=3))
    with pytest.raises(LimitError):
        use(limiter, caller(requests_per_minute=3))
    use(limiter, caller(requests_per_minute=4))
    with pytest.raises(LimitError):
        use(limiter, caller(requests_per_minute=4))
    use(limiter, caller())


def test_a_bucket_never_holds_more_than_a_minute() -> None:
    bucket = Bucket(60, now=0.0)
    bucket.take(60, now=0.0)
    assert bucket.seconds_until_one(0.0) == 1
    assert bucket.seconds_until_one(0.5) == pytest.approx(0.5)
    assert bucket.seconds_until_one(600.0) == 0
    bucket.take(60, now=600.0)
    assert bucket.seconds_until_one(600.0) == 1


def test_an_answers_tokens_are_spent_as_they_come() -> None:
    spent: list[int] = []
    observe = spending(spent.append)
    observe(Chunk("a", 2))
    observe(Chunk("b", 3))
    assert spent == [2, 3], "an answer that is cut short has cost that much"
    observe = spending(spent.append)
    for event in abstention(hit(guard()), "Take", " eggs"):
        observe(event)
    assert spent[2:] == [1, 1, 1], "the withheld token counts"


async def ask(client: httpx.AsyncClient, key: str, path: str = CHAT, body: object = None) -> httpx.Response:
    return await client.post(path, json=body or chat(), headers={"authorization": f"Bearer {key}"})


@pytest.mark.anyio
async def test_a_tenants_keys_share_its_limit(tmp_path: Path) -> None:
    tenants = {
        "team": {"keys": [each[1].model_dump(mode="json") for each in (ANN, BOB)], "requests_per_minute": 2},
        "other": {"keys": [CAT[1].model_dump(mode="json")]},
    }
    async with serving(api_keys_file=write_tenants(tmp_path / "keys.json", tenants)) as served:
        assert [(await ask(served.client, key[0])).status_code for key in (ANN, BOB, ANN, CAT)] == [200, 200, 429, 200]
        refused = await ask(served.client, BOB[0])
        assert 1 <= int(refused.headers["retry-after"]) <= 30
        error = refused.json()["error"]
        assert (error["type"], error["code"], error["param"]) == ("rate_limit_error", "rate_limit_exceeded", None)
        assert len(served.engine.submitted) == 3
        listed = await served.client.get("/v1/models", headers={"authorization": f"Bearer {ANN[0]}"})
        assert listed.status_code == 200, "what only tells is not counted"


@pytest.mark.anyio
@pytest.mark.parametrize(("path", "body"), [(CHAT, chat()), (CHAT, chat(stream=True)), (CHECKS, completion("a" * 30))])
async def test_tokens_of_prompts_and_answers_count(tmp_path: Path, path: str, body: object) -> None:
    """The scripted engine reads a token a byte."""
    engine = ScriptedEngine([Script(answer(*"twelve pieces"))])
    async with serving(engine, api_keys_file=keys_file(tmp_path, ANN[1], tokens_per_minute=25)) as served:
        assert (await ask(served.client, ANN[0], path, body)).status_code == 200
        refused = await ask(served.client, ANN[0], path, body)
        assert refused.status_code == 429
        assert "tokens a minute" in refused.json()["error"]["message"]


@pytest.mark.anyio
async def test_a_stream_holds_its_place_until_it_ends(tmp_path: Path) -> None:
    go_on = asyncio.Event()
    first, *rest = answer("Hello", ".")
    engine = ScriptedEngine([Script((first, go_on, *rest))])
    async with serving(engine, api_keys_file=keys_file(tmp_path, ANN[1], concurrent_requests=1)) as served:
        exchange = Exchange.of(served.app, CHAT, chat(stream=True))
        exchange.headers += ((b"authorization", f"Bearer {ANN[0]}".encode()),)
        running = asyncio.create_task(exchange.run())
        await exchange.next_data()
        refused = await ask(served.client, ANN[0])
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        go_on.set()
        await running
        assert (await ask(served.client, ANN[0])).status_code == 200
