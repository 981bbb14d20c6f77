"""Another artifact takes a guard's place while a server runs."""

import asyncio
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from guards.core.policy import Rule
from guards.core.verdict import GuardKind, GuardMode
from guards.errors import ArtifactError
from server.engines.base import TemplateState
from server.engines.events import Chunk
from server.engines.scripted.engine import ScriptedEngine
from server.engines.scripted.scripts import Script, answer
from server.readiness import Phase
from tests.server.administered import (
    ANN,
    NEW,
    OPS,
    administered,
    changes,
    listed,
    patch,
    reload,
    rule_of_next,
)
from tests.server.audit.test_served import told
from tests.server.harness import CHAT, Exchange, Served, chat

pytestmark = pytest.mark.anyio


async def test_a_reload_keeps_the_mode_and_takes_the_artifacts_taus(tmp_path: Path) -> None:
    async with administered(tmp_path) as served:
        await patch(served, {"mode": "shadow", "taus": [0.4]})
        response = await reload(served)
        assert response.status_code == 200
        row = response.json()
        assert (row["digest"], row["mode"], row["taus"], row["artifact_taus"]) == ("1" * 64, "shadow", [0.75], [0.75])
        assert (row["policy_version"], row["verified"]) == (3, True)
        assert await rule_of_next(served) == Rule(GuardMode.SHADOW, taus=(0.75,))
        assert served.engine.offered_from == [None], "its own folder"
        info = (await served.client.get("/metrics", headers=OPS)).text
        assert f'sha256="{"1" * 64}"' in info


@pytest.mark.parametrize(
    ("offered", "why"),
    [
        (ArtifactError("no folder there"), "no folder there"),
        (replace(NEW, skill="baking"), "skill is baking"),
        (replace(NEW, kind=GuardKind.INTERVENTION), "kind is intervention"),
        (
            replace(NEW, template=TemplateState.CHANGED, template_difference="got ids"),
            "got ids: the artifact was calibrated with another chat template",
        ),
        (replace(NEW, rule=Rule(taus=(-0.5,))), "team.*no tau above 0"),
    ],
    ids=["unreadable", "another skill", "another kind", "another template", "no tau for a tenant's factor"],
)
async def test_an_artifact_that_cannot_take_the_place_is_refused_and_nobody_waits(
    tmp_path: Path, offered: Any, why: str
) -> None:
    engine = ScriptedEngine()
    engine.offers["demo"] = offered
    policy = {"guards": {"demo": {"tau_factor": 1.5}}}
    async with administered(tmp_path, engine, policy=policy) as served:
        before = await listed(served)
        response = await reload(served)
        assert (response.status_code, response.json()["error"]["code"]) == (409, "change_refused")
        assert re.search(why, response.json()["error"]["message"])
        assert await listed(served) == before
        assert engine.exchanges == []
        assert await changes(served, "artifact", "refused") == 1
    (record,) = told(tmp_path / "log", "admin")
    assert (record["after"], record["policy_version"], record["key"]) == (None, 1, "ops")
    assert record["refused"] == response.json()["error"]["message"]


class Failing(ScriptedEngine):
    """Its canaries disagree while some artifact is in a guard's place."""

    bad: str = "1" * 64

    async def verify(self) -> Mapping[str, str | None]:
        await self.may_verify.wait()
        return {each.name: "canary 0: off" if each.digest == self.bad else None for each in self.info.guards}


async def test_an_artifact_that_does_not_verify_is_put_out_again(tmp_path: Path) -> None:
    engine = Failing()
    async with administered(tmp_path, engine) as served:
        before = await listed(served)
        response = await reload(served)
        assert (response.status_code, response.json()["error"]["code"]) == (409, "change_refused")
        assert response.json()["error"]["message"] == "guard demo: canary 0: off"
        assert await listed(served) == before
        assert [each.digest[0] for each in engine.exchanges] == ["1", "0"]
        assert (await rule_of_next(served)).taus == (0.5,)
    assert [(each["digest"][0], each["agreed"]) for each in told(tmp_path / "log", "canaries")] == [
        *(("0", True), ("1", False), ("0", True))
    ]


async def test_where_the_old_one_does_not_verify_either_the_server_is_closed(tmp_path: Path) -> None:
    class Spoilt(Failing):
        async def exchange(self) -> None:
            await super().exchange()
            self.bad = self.info.guards[0].digest

    async with administered(tmp_path, Spoilt()) as served:
        response = await reload(served)
        assert response.status_code == 409
        assert "nothing is served until a restart" in response.json()["error"]["message"]
        assert served.readiness.phase is Phase.FAILED
        assert (await served.post(CHAT, chat(), **ANN)).status_code == 503
        assert (await served.client.get("/ready")).status_code == 503


async def test_an_engine_that_cannot_put_back_leaves_the_server_closed(tmp_path: Path) -> None:
    class Broken(Failing):
        async def exchange(self) -> None:
            if self.exchanges:
                raise RuntimeError("lost")
            await super().exchange()

    async with administered(tmp_path, Broken()) as served:
        assert (await reload(served)).status_code == 409
        assert served.readiness.phase is Phase.FAILED
        assert "lost" in str(served.readiness.failure)


def held(go_on: asyncio.Event) -> ScriptedEngine:
    """An engine whose slow answers wait."""
    steps = (Chunk("a", 1), go_on, *answer("b"))
    return ScriptedEngine([Script(steps, when=lambda text: "slow" in text), Script(answer("fine"))])


async def until_shut(served: Served) -> None:
    while served.readiness.admission.open:
        await asyncio.sleep(0)


async def waiting_reload(served: Served) -> tuple["asyncio.Task[httpx.Response]", "asyncio.Task[httpx.Response]"]:
    """A slow answer that runs, and a reload that waits for it."""
    running = asyncio.create_task(served.post(CHAT, chat("slow"), **ANN))
    while not served.engine.submitted:
        await asyncio.sleep(0)
    reloading = asyncio.create_task(reload(served))
    await until_shut(served)
    return running, reloading


async def test_a_reload_waits_for_running_answers_and_new_requests_wait_for_it(tmp_path: Path) -> None:
    go_on = asyncio.Event()
    engine = held(go_on)
    async with administered(tmp_path, engine) as served:
        running, reloading = await waiting_reload(served)
        waiting = [asyncio.create_task(served.post(CHAT, chat(), **ANN)) for _ in range(3)]
        for path in ("/ready", "/v1/health/ready", "/v2/health/ready", "/ping"):
            assert (await served.client.get(path)).status_code == 503
        assert (await served.client.get("/ready")).json() == {"status": "reloading"}
        told = (await served.client.get("/ready", headers=OPS)).json()
        assert (told["status"], told["guards"]) == ("reloading", {"demo": True})
        assert (await served.client.get("/health")).status_code == 200
        assert (await listed(served))["guards"][0]["digest"] == "0" * 64
        assert "skillguard_ready 0.0" in (await served.client.get("/metrics", headers=OPS)).text
        assert (len(engine.submitted), engine.exchanges) == (1, [])
        engine.may_verify.clear()
        go_on.set()
        assert (await running).status_code == 200
        while not engine.exchanges:
            await asyncio.sleep(0)
        during = await served.client.get("/ready", headers=OPS)
        assert (during.status_code, during.json()["guards"]) == (503, {"demo": False})
        assert len(engine.submitted) == 1, "nothing is asked of what is not verified"
        engine.may_verify.set()
        assert (await reloading).status_code == 200
        assert [(await each).status_code for each in waiting] == [200] * 3
        taus = [request.policy.rules["demo"].taus for request in engine.submitted]
        assert taus == [(0.5,), *[(0.75,)] * 3], "each is judged by the taus of the guard that reads it"
        assert (await served.client.get("/ready")).status_code == 200


async def test_a_reload_that_waits_too_long_is_given_up(tmp_path: Path) -> None:
    go_on = asyncio.Event()
    engine = held(go_on)
    async with administered(tmp_path, engine, reload_patience_seconds=0.05) as served:
        running, reloading = await waiting_reload(served)
        waiting = asyncio.create_task(served.post(CHAT, chat(), **ANN))
        refused = await reloading
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "change_refused")
        assert "1 requests did not end" in refused.json()["error"]["message"]
        assert (await waiting).status_code == 200, "it goes on, under the old guard"
        assert engine.exchanges == []
        go_on.set()
        assert (await running).status_code == 200


async def test_a_slow_reader_of_a_stream_holds_up_no_reload(tmp_path: Path) -> None:
    """Its answer is written; what is left is his."""
    engine = ScriptedEngine([Script(answer("a", "b"))])
    read_on = asyncio.Event()
    async with administered(tmp_path, engine) as served:
        slow = Exchange.of(served.app, CHAT, chat(stream=True))
        slow.headers = (*slow.headers, (b"authorization", OPS["authorization"].encode()))
        slow.before_sending = read_on.wait
        reading = asyncio.create_task(slow.run())
        while not engine.submitted:
            await asyncio.sleep(0)
        assert (await reload(served)).status_code == 200
        assert not reading.done()
        read_on.set()
        await reading
        assert slow.sent.qsize() > 2


async def test_an_admin_who_hangs_up_does_not_end_the_reload(tmp_path: Path) -> None:
    go_on = asyncio.Event()
    engine = held(go_on)
    async with administered(tmp_path, engine) as served:
        running, reloading = await waiting_reload(served)
        reloading.cancel()
        go_on.set()
        assert (await running).status_code == 200
        assert (await rule_of_next(served)).taus == (0.75,)


async def test_self_checks_wait_for_a_reload_and_go_on_after_it(tmp_path: Path) -> None:
    checked = 0

    class Counting(ScriptedEngine):
        async def verify(self) -> Mapping[str, str | None]:
            nonlocal checked
            checked += 1
            return await super().verify()

    engine = Counting()
    engine.offers["demo"] = NEW
    async with administered(tmp_path, engine) as served:
        engine.may_verify.clear()
        reloading = asyncio.create_task(reload(served))
        while checked < 2:
            await asyncio.sleep(0)
        checking = asyncio.create_task(served.readiness.check_again())
        engine.may_verify.set()
        assert (await reloading).status_code == 200
        await checking
        assert checked == 3
        assert served.readiness.ready
    assert [each["when"] for each in told(tmp_path / "log", "canaries")] == ["start", "reload", "schedule"]
