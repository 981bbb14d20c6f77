"""A tenant's policy holds for its keys, on every route, and for nobody else's; no request loosens it."""

from pathlib import Path
from typing import Any

import pytest

from guards.core.policy import Policy
from guards.core.verdict import GuardKind, GuardMode, Reading
from server.auth import DEFAULT_TENANT, Role, new_key
from server.engines.scripted.engine import ScriptedEngine
from server.engines.scripted.scripts import Script, abstention, guard, hit, score
from server.policies import default_policy, shadowed
from tests.server.harness import (
    ATTRIBUTIONS,
    CHAT,
    CHECKS,
    COMPLETIONS,
    GUARDRAIL,
    MODERATIONS,
    RESPONSES,
    Served,
    chat,
    completion,
    keys_file,
    responses,
    serving,
    write_tenants,
)
from tests.server.judging import cook

pytestmark = pytest.mark.anyio

GUARDS = (guard("a"), guard("b"), guard("c"))
MODES = {
    # the server shadows c
    "plain": {},
    "trying": {"a": "shadow", "c": "enforce"},
    "partly": {"a": "off", "b": "shadow"},
}
WANTED = {
    "plain": {"a": "enforce", "b": "enforce", "c": "shadow"},
    "trying": {"a": "shadow", "b": "enforce", "c": "enforce"},
    "partly": {"a": "off", "b": "shadow", "c": "shadow"},
}
KEYS = {name: new_key(name, Role.USER) for name in MODES} | {"watcher": new_key("watcher", Role.OPERATOR)}


def tenant(name: str, **policy: object) -> dict[str, object]:
    return {"keys": [KEYS[name][1].model_dump(mode="json")], **policy}


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    tenants = {
        name: tenant(name, guards={each: {"mode": mode} for each, mode in modes.items()})
        for name, modes in MODES.items()
    }
    file = write_tenants(tmp_path / "keys.json", {**tenants, DEFAULT_TENANT: tenant("watcher")})
    return {"api_keys_file": file, "shadow": ("c",)}


def authorization(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer {KEYS[name][0]}"}


def modes_of(policy: Policy) -> dict[str, str]:
    """That is all that these tenants change."""
    assert policy.in_mode(GuardMode.ENFORCE) == default_policy(GUARDS)
    return {name: rule.mode.value for name, rule in policy.rules.items()}


@pytest.mark.parametrize("name", WANTED)
async def test_requests_carry_their_tenants_policy(settings: dict[str, Any], name: str) -> None:
    async with serving(ScriptedEngine(guards=GUARDS), **settings) as served:
        for path, body in ((CHAT, chat()), (CHAT, chat(stream=True)), (COMPLETIONS, completion(["x", "y"], n=2))):
            response = await served.post(path, body, **authorization(name))
            assert response.status_code == 200, response.text
        policies = [request.policy for request in served.engine.submitted]
        assert [modes_of(policy) for policy in policies] == [WANTED[name]] * 6
        assert len({policy.version for policy in policies}) == 1


async def test_the_engine_is_told_whose_each_prompt_is(tmp_path: Path) -> None:
    engine, file = cook(), keys_file(tmp_path, KEYS["watcher"][1], tenant="watcher")
    async with serving(engine, api_keys_file=file) as served:
        for path, body in (
            (CHAT, chat()),
            (RESPONSES, responses()),
            (COMPLETIONS, completion()),
            (CHECKS, completion()),
            (MODERATIONS, {"input": "a"}),
            (GUARDRAIL, {"input_type": "request", "texts": ["a"]}),
            (ATTRIBUTIONS, completion()),
        ):
            response = await served.post(path, body, **authorization("watcher"))
            assert response.status_code == 200, response.text
    assert [request.tenant for request in engine.submitted] == ["watcher"] * 5
    assert engine.looked_at_for == ["watcher"] * 3, "attributions check, and trace"
    async with serving(unnamed := ScriptedEngine()) as served:
        await served.post(CHAT, chat())
        assert [request.tenant for request in unnamed.submitted] == ["anonymous"]


async def test_one_tenants_policy_is_not_the_nexts(settings: dict[str, Any]) -> None:
    order = [*WANTED, *reversed(WANTED)]
    async with serving(ScriptedEngine(guards=GUARDS), **settings) as served:
        for name in order:
            await served.post(CHAT, chat(), **authorization(name))
        policies = [request.policy for request in served.engine.submitted]
        assert [modes_of(policy) for policy in policies] == [WANTED[name] for name in order]
        assert len({policy.version for policy in policies}) == len(WANTED)


@pytest.mark.parametrize("name", WANTED)
async def test_checks_and_guards_show_the_callers_modes(settings: dict[str, Any], name: str) -> None:
    engine = ScriptedEngine(guards=GUARDS)
    engine.scores = tuple(score(of, Reading.INSIDE) for of in GUARDS)
    verdicts = {"enforce": "abstain", "shadow": "shadow", "off": "allow"}
    async with serving(engine, **settings) as served:
        checked = (await served.post(CHECKS, completion(), **authorization(name))).json()["data"]
        assert {row["guard"]: row["verdict"] for row in checked} == {
            each: verdicts[mode] for each, mode in WANTED[name].items()
        }
        response = await served.client.get("/v1/guards", headers=authorization(name))
        assert {row["name"]: row["mode"] for row in response.json()["data"]} == WANTED[name]
        assert [other for other in KEYS if other != name and other in response.text] == []


@pytest.mark.parametrize("field", ["shadow", "modes", "guards", "policy", "mode", "tenant", "tau_factor"])
@pytest.mark.parametrize("value", [["a"], {"a": "shadow"}])
async def test_no_field_of_a_request_changes_it(settings: dict[str, Any], field: str, value: object) -> None:
    async with serving(ScriptedEngine(guards=GUARDS), **settings) as served:
        for path, body in ((CHAT, chat()), (COMPLETIONS, completion()), (CHECKS, completion())):
            response = await served.post(path, {**body, field: value}, **authorization("plain"))
            assert (response.status_code, response.json()["error"]["param"]) == (400, field)
        assert (served.engine.submitted, served.engine.checked) == ([], [])


@pytest.mark.parametrize("field", ["shadow", "modes", "guards", "policy", "mode", "tenant"])
async def test_a_field_of_nothing_changes_nothing(settings: dict[str, Any], field: str) -> None:
    async with serving(ScriptedEngine(guards=GUARDS), **settings) as served:
        for path, body in ((CHAT, chat()), (COMPLETIONS, completion())):
            for each in body, {**body, field: None}:
                assert (await served.post(path, each, **authorization("plain"))).status_code == 200
        assert len({request.policy.version for request in served.engine.submitted}) == 1


async def test_metrics_show_the_servers_modes(settings: dict[str, Any]) -> None:
    async with serving(ScriptedEngine(guards=GUARDS), **settings) as served:
        await served.post(CHAT, chat(), **authorization("trying"))
        text = (await served.client.get("/metrics", headers=authorization("watcher"))).text
        lines = [line for line in text.splitlines() if line.startswith("skillguard_guard_info{")]
        assert ['mode="shadow"' in line for line in lines] == [False, False, True]


async def test_a_factor_moves_the_taus_of_one_tenant(tmp_path: Path) -> None:
    tenants = {"plain": tenant("plain"), "trying": tenant("trying", guards={"a": {"tau_factor": 1.5}})}
    file = write_tenants(tmp_path / "keys.json", tenants)
    async with serving(ScriptedEngine(guards=GUARDS), api_keys_file=file) as served:
        for name in tenants:
            await served.post(CHAT, chat(), **authorization(name))
        taus = [[rule.taus for rule in each.policy.rules.values()] for each in served.engine.submitted]
        assert taus == [[(0.5,), (0.5,), (0.5,)], [(0.75,), (0.5,), (0.5,)]]


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ({"mode": "shadow"}, "guard 'n' changes activations and cannot only watch"),
        ({"tau_factor": 1.5}, "guard 'n' has no tau above 0"),
    ],
)
async def test_what_an_intervention_cannot_do_stops_the_start(tmp_path: Path, setting: object, says: str) -> None:
    engine = ScriptedEngine(guards=(guard("n", kind=GuardKind.INTERVENTION), guard("b")))
    file = keys_file(tmp_path, KEYS["plain"][1], guards={"n": setting})
    async with serving(engine, api_keys_file=file) as served:
        assert f"guards of tenant 'team': {says}" in str(served.readiness.failure)
        assert (await served.post(CHAT, chat(), **authorization("plain"))).status_code == 503
    for mode in ("enforce", "off"):
        file = keys_file(tmp_path, KEYS["plain"][1], guards={"n": {"mode": mode}})
        async with serving(engine := ScriptedEngine(guards=engine.info.guards), api_keys_file=file) as served:
            assert (await served.post(CHAT, chat(), **authorization("plain"))).status_code == 200
            assert engine.submitted[0].policy.rules["n"].mode == mode


async def abstained(served: Served, name: str) -> tuple[int, str | None, str | None]:
    """(status, what is said as content, as a refusal)"""
    response = await served.post(CHAT, chat(), **authorization(name))
    if response.status_code != 200:
        return response.status_code, None, None
    message = response.json()["choices"][0]["message"]
    return 200, message["content"], message["refusal"]


async def test_each_tenant_has_its_own_style_and_text(tmp_path: Path) -> None:
    tenants = {
        "plain": tenant("plain"),
        "trying": tenant("trying", abstain_style="refusal", abstain_text="Ask the help desk."),
        "partly": tenant("partly", abstain_style="error"),
    }
    file = write_tenants(tmp_path / "keys.json", tenants)
    engine = ScriptedEngine([Script(abstention(hit(guard())))])
    async with serving(engine, api_keys_file=file, abstain_text="Not here.") as served:
        assert await abstained(served, "plain") == (200, "Not here.", None)
        assert await abstained(served, "trying") == (200, None, "Ask the help desk.")
        assert await abstained(served, "partly") == (400, None, None)


def test_versions_tell_tenants_policies_apart() -> None:
    policies = [shadowed(default_policy(GUARDS), each) for each in ((), ("a",), ("a", "b"))]
    assert len({policy.version for policy in policies}) == 3
