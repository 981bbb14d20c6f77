"""What admins change of guards while a server runs."""

import asyncio
from pathlib import Path

import pytest

from guards.artifact.pins import ArtifactPath
from guards.core.policy import Rule
from guards.core.verdict import GuardMode
from server.audit.verify import verify
from server.config import AuditFailure
from server.engines.events import Chunk
from server.engines.scripted.engine import ScriptedEngine
from server.engines.scripted.scripts import Script, abstention, answer, guard, hit
from tests.server.administered import (
    ACTING,
    ADMIN,
    ANN,
    OLD_ROW,
    OPS,
    administered,
    changes,
    listed,
    patch,
    reload,
    rule_of_next,
)
from tests.server.audit.test_served import told
from tests.server.harness import CHAT, chat, keys_file, serving

pytestmark = pytest.mark.anyio


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
