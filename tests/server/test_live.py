"""What admins change of guards while a server runs."""

import asyncio
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from guards.artifact.pins import ArtifactPath
from guards.core.policy import Rule
from guards.core.verdict import GuardKind, GuardMode
from guards.errors import ArtifactError
from server.audit.verify import verify
from server.auth import Role, new_key
from server.config import AuditFailure
from server.engines.base import TemplateState
from server.engines.events import Chunk
from server.engines.scripted.engine import ScriptedEngine
from server.engines.scripted.scripts import Script, abstention, answer, guard, hit
from server.readiness import Phase
from tests.server.audit.test_served import told
from tests.server.harness import CHAT, Exchange, Served, chat, keys_file, serving

pytestmark = pytest.mark.anyio

ADMIN, USER = new_key("ops", Role.ADMIN), new_key("ann", Role.USER)
OPS, ANN = ({"authorization": f"Bearer {key}"} for key, _ in (ADMIN, USER))
ACTING = guard("acting", kind=GuardKind.INTERVENTION)
NEW = replace(guard(), digest="1" * 64, rule=Rule(taus=(0.75,)))
OLD_ROW = {
    "name": "demo",
    "skill": "cooking",
    "method": "ksd",
    "kind": "detector",
    "digest": "0" * 64,
    "pinned": False,
    "signed_by": [],
    "mode": "enforce",
    "taus": [0.5],
    "artifact_taus": [0.5],
    "changed_by": [],
    "acts_after": [],
    "verified": True,
    "template": "verified",
}


@asynccontextmanager
async def administered(
    folder: Path, engine: ScriptedEngine | None = None, *, policy: Mapping[str, Any] | None = None, **settings: Any
) -> AsyncIterator[Served]:
    (folder / "log").mkdir(exist_ok=True)
    keys = keys_file(folder, ADMIN[1], USER[1], **(policy or {}))
    engine = engine or ScriptedEngine(guards=(guard(), ACTING))
    engine.offers.setdefault("demo", NEW)
    async with serving(engine, api_keys_file=keys, audit_dir=folder / "log", **settings) as served:
        yield served


async def listed(served: Served) -> dict[str, Any]:
    response = await served.client.get("/admin/guards", headers=OPS)
    assert response.status_code == 200
    report: dict[str, Any] = response.json()
    return report


async def patch(served: Served, change: object, name: str = "demo") -> httpx.Response:
    return await served.client.patch(f"/admin/guards/{name}", json=change, headers=OPS)


async def reload(served: Served, body: object = None, name: str = "demo") -> httpx.Response:
    return await served.client.post(f"/admin/guards/{name}/reload", json=body, headers=OPS)


async def rule_of_next(served: Served) -> Rule:
    """Under which a user's next request is judged."""
    assert (await served.post(CHAT, chat(), **ANN)).status_code == 200
    return served.engine.submitted[-1].policy.rules["demo"]


async def changes(served: Served, what: str, outcome: str) -> float:
    text = (await served.client.get("/metrics", headers=OPS)).text
    name = f'skillguard_guard_changes_total{{guard="demo",outcome="{outcome}",what="{what}"}} '
    (value,) = [line.removeprefix(name) for line in text.splitlines() if line.startswith(name)]
    return float(value)


async def test_every_guard_is_listed_as_it_judges(tmp_path: Path) -> None:
    async with administered(tmp_path, shadow=("demo",)) as served:
        report = await listed(served)
    acting = {**OLD_ROW, "name": "acting", "kind": "intervention", "taus": [], "artifact_taus": []}
    assert report == {"policy_version": 1, "guards": [{**OLD_ROW, "mode": "shadow"}, acting]}


@pytest.mark.parametrize(
    ("change", "mode", "taus"),
    [
        ({"mode": "shadow"}, "shadow", [0.5]),
        ({"mode": "off"}, "off", [0.5]),
        ({"taus": [0.4]}, "enforce", [0.4]),
        ({"taus": [3]}, "enforce", [3.0]),
        ({"tau_factor": 2}, "enforce", [1.0]),
        ({"mode": "shadow", "tau_factor": 0.5, "taus": None}, "shadow", [0.25]),
    ],
)
async def test_a_change_holds_for_the_next_request(
    tmp_path: Path, change: object, mode: str, taus: list[float]
) -> None:
    async with administered(tmp_path) as served:
        assert await rule_of_next(served) == Rule(taus=(0.5,)), "the control"
        response = await patch(served, change)
        assert response.status_code == 200
        told_of = response.json()
        assert "until the server restarts" in told_of.pop("notice")
        assert told_of == {**OLD_ROW, "mode": mode, "taus": taus, "policy_version": 2}
        assert await rule_of_next(served) == Rule(GuardMode(mode), taus=tuple(taus))
        report = await listed(served)
        assert (report["policy_version"], report["guards"][0]["taus"]) == (2, taus)
        assert "skillguard_policy_version 2.0" in (await served.client.get("/metrics", headers=OPS)).text
    async with administered(tmp_path) as again:
        assert await rule_of_next(again) == Rule(taus=(0.5,)), "a restart knows nothing of it"


async def test_a_factor_is_of_the_artifacts_taus_and_a_tenants_goes_on_top(tmp_path: Path) -> None:
    policy = {"guards": {"demo": {"tau_factor": 1.5}}}
    async with administered(tmp_path, policy=policy) as served:
        for _ in range(2):
            assert (await patch(served, {"tau_factor": 2})).json()["taus"] == [1.0]
        assert (await rule_of_next(served)).taus == (1.5,)


async def test_a_request_that_runs_keeps_the_policy_it_began_with(tmp_path: Path) -> None:
    go_on = asyncio.Event()
    steps = (Chunk("a", 1), go_on, *answer("b"))
    engine = ScriptedEngine([Script(steps, when=lambda text: "slow" in text), Script(answer("fine"))])
    async with administered(tmp_path, engine) as served:
        running = asyncio.create_task(served.post(CHAT, chat("slow"), **ANN))
        while not engine.submitted:
            await asyncio.sleep(0)
        assert (await patch(served, {"mode": "off"})).status_code == 200
        assert engine.submitted[0].policy.rules["demo"].mode is GuardMode.ENFORCE
        assert (await rule_of_next(served)).mode is GuardMode.OFF
        go_on.set()
        assert (await running).status_code == 200


@pytest.mark.parametrize(
    ("change", "param", "name"),
    [
        ({}, "mode", "demo"),
        ({"mode": "on"}, "mode", "demo"),
        ({"taus": [0.5], "tau_factor": 1.0}, "taus", "demo"),
        ({"taus": []}, "taus", "demo"),
        ({"taus": [0.5, 0.5]}, "taus", "demo"),
        ({"taus": ["0.5"]}, "taus[0]", "demo"),
        ({"taus": [0.0]}, "taus", "demo"),
        ({"taus": [-0.5]}, "taus", "demo"),
        ({"taus": [1e39]}, "taus", "demo"),
        ({"taus": [3e38]}, "taus", "demo"),
        ({"taus": [1e-46]}, "taus", "demo"),
        ({"taus": [1.4e-45]}, "taus", "demo"),
        ({"tau_factor": 0.49}, "tau_factor", "demo"),
        ({"tau_factor": 2.01}, "tau_factor", "demo"),
        ({"scope": "prompt"}, "scope", "demo"),
        ({"tau_factor": 1.5}, "tau_factor", "acting"),
        ({"taus": [1.0]}, "taus", "acting"),
        ({"mode": "shadow"}, "mode", "acting"),
    ],
)
async def test_what_a_guard_cannot_judge_by_is_refused(tmp_path: Path, change: object, param: str, name: str) -> None:
    async with administered(tmp_path) as served:
        before = await listed(served)
        response = await patch(served, change, name)
        error = response.json()["error"]
        assert (response.status_code, error["param"]) == (400, param), error
        assert await listed(served) == before
    assert told(tmp_path / "log", "admin") == []


@pytest.mark.parametrize("text", ["NaN", "Infinity", "1e999"])
async def test_what_is_no_number_is_refused(tmp_path: Path, text: str) -> None:
    headers = {**OPS, "content-type": "application/json"}
    async with administered(tmp_path) as served:
        response = await served.client.patch("/admin/guards/demo", content=f'{{"taus": [{text}]}}', headers=headers)
        assert response.status_code == 400
        assert (await listed(served))["policy_version"] == 1


async def test_a_guard_that_is_not_there(tmp_path: Path) -> None:
    async with administered(tmp_path) as served:
        for response in (await patch(served, {"mode": "off"}, "dmeo"), await reload(served, name="dmeo")):
            assert (response.status_code, response.json()["error"]["code"]) == (404, "guard_not_found")
            assert "known: demo, acting" in response.json()["error"]["message"]


async def test_each_change_is_recorded_with_who_and_what_before_it_holds(tmp_path: Path) -> None:
    engine = ScriptedEngine([Script(abstention(hit(guard())))])
    async with administered(tmp_path, engine) as served:
        await patch(served, {"mode": "shadow", "tau_factor": 2})
        await patch(served, {"mode": "enforce"})
        await served.post(CHAT, chat(), **ANN)
        await reload(served, {"path": "elsewhere"})
        assert await changes(served, "mode", "made") == 2
        assert await changes(served, "taus", "made") == 1
        assert await changes(served, "artifact", "made") == 1
        assert await changes(served, "artifact", "refused") == 0
    assert verify([tmp_path / "log"]).problems == []
    records = told(tmp_path / "log")
    assert [each["kind"] for each in records] == [
        *("start", "canaries", "admin", "admin", "abstention", "canaries", "admin", "stop")
    ]
    first, second, exchanged = (each for each in records if each["kind"] == "admin")
    asked = {"what": "guard", "key": "ops", "tenant": "admins", "guard": "demo"}
    for each, route in ((first, "/admin/guards/{name}"), (exchanged, "/admin/guards/{name}/reload")):
        assert each | asked | {"route": route} == each
    old, new = "0" * 64, "1" * 64
    assert first["before"] == {"mode": "enforce", "taus": [0.5], "digest": old}
    assert first["after"] == second["before"] == {"mode": "shadow", "taus": [1.0], "digest": old}
    assert second["after"] == exchanged["before"] == {"mode": "enforce", "taus": [1.0], "digest": old}
    assert exchanged["after"] == {"mode": "enforce", "taus": [0.75], "digest": new}
    assert [records[0]["policy_version"], *(each["policy_version"] for each in (first, second, exchanged))] == [
        *range(1, 5)
    ]
    assert records[4]["policy"] == second["policy"], "by which a record's policy is found"
    assert len({records[0]["policy"], first["policy"], second["policy"], exchanged["policy"]}) == 4
    assert (records[5]["when"], records[5]["digest"]) == ("reload", new)
    assert engine.offered_from == [ArtifactPath(Path("elsewhere"))]


@pytest.mark.parametrize("failure", AuditFailure)
async def test_what_cannot_be_recorded_is_not_changed(tmp_path: Path, failure: AuditFailure) -> None:
    """Also where answers would go on without their records."""
    async with administered(tmp_path, audit_failure=failure) as served:
        before = await listed(served)
        (tmp_path / "log").rename(tmp_path / "away")
        for response in (await patch(served, {"mode": "off"}), await reload(served)):
            assert (response.status_code, response.json()["error"]["code"]) == (503, "audit_failure")
        assert await listed(served) == before
        assert served.readiness.ready
        assert await changes(served, "mode", "refused") == 1
        (tmp_path / "away").rename(tmp_path / "log")
        assert (await rule_of_next(served)).mode is GuardMode.ENFORCE
        assert (await patch(served, {"mode": "off"})).status_code == 200, "the control"


async def test_without_an_audit_log_a_change_is_a_line_of_the_programs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(api_keys_file=keys_file(tmp_path, ADMIN[1])) as served:
        assert (await patch(served, {"mode": "off"})).status_code == 200
    (line,) = [each.getMessage() for each in caplog.records if "what=guard" in each.getMessage()]
    assert "key=ops" in line
    assert "policy_version=2" in line


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


async def test_a_mode_does_not_wait_for_canaries_on_schedule(tmp_path: Path) -> None:
    """A full queue, that callers fill, may hold these up for long."""
    engine = ScriptedEngine(guards=(guard(), ACTING))
    async with administered(tmp_path, engine) as served:
        engine.may_verify.clear()
        checking = asyncio.create_task(served.readiness.check_again())
        await asyncio.sleep(0)
        assert (await patch(served, {"mode": "shadow"})).status_code == 200
        assert (await rule_of_next(served)).mode is GuardMode.SHADOW
        assert not checking.done(), "positive control"
        engine.may_verify.set()
        await checking
        assert served.readiness.ready


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


async def test_a_reload_waits_for_running_answers_and_new_requests_wait_for_it(tmp_path: Path) -> None:
    go_on = asyncio.Event()
    engine = held(go_on)
    async with administered(tmp_path, engine) as served:
        running = asyncio.create_task(served.post(CHAT, chat("slow"), **ANN))
        while not engine.submitted:
            await asyncio.sleep(0)
        reloading = asyncio.create_task(reload(served))
        await until_shut(served)
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
        running = asyncio.create_task(served.post(CHAT, chat("slow"), **ANN))
        while not engine.submitted:
            await asyncio.sleep(0)
        reloading = asyncio.create_task(reload(served))
        await until_shut(served)
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
        running = asyncio.create_task(served.post(CHAT, chat("slow"), **ANN))
        while not engine.submitted:
            await asyncio.sleep(0)
        reloading = asyncio.create_task(reload(served))
        await until_shut(served)
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
