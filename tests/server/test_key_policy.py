"""A key can have guards that only watch: for its holder, on every route, and for nobody else."""

import json
from pathlib import Path
from typing import Any

import pytest

from guards.core.policy import Policy
from guards.core.verdict import GuardKind, GuardMode, Reading
from server.auth import KeyEntry, Role, new_key
from server.engines.scripted.engine import ScriptedEngine
from server.engines.scripted.scripts import guard, score
from server.policies import default_policy, shadowed
from tests.server.harness import CHAT, CHECKS, COMPLETIONS, Served, chat, completion, serving

pytestmark = pytest.mark.anyio

GUARDS = (guard("a"), guard("b"), guard("c"))
PLAIN = new_key("plain", Role.USER)
TRYING_A = new_key("trying-a", Role.USER, shadow=("a",))
TRYING_BOTH = new_key("trying-both", Role.OPERATOR, shadow=("b", "a"))
KEYS = {entry.name: (key, entry) for key, entry in (PLAIN, TRYING_A, TRYING_BOTH)}
WATCHING = [
    # the key, the guards that only watch its requests where the server shadows c
    ("plain", {"c"}),
    ("trying-a", {"a", "c"}),
    ("trying-both", {"a", "b", "c"}),
]


def keys_file(folder: Path, *entries: KeyEntry) -> Path:
    path = folder / "keys.json"
    path.write_text(json.dumps({"keys": [entry.model_dump(mode="json") for entry in entries]}))
    return path


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    return {"api_keys_file": keys_file(tmp_path, *(entry for _, entry in KEYS.values())), "shadow": ("c",)}


def authorization(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer {KEYS[name][0]}"}


def watching(policy: Policy) -> set[str]:
    """The guards that only watch; that is all a key may change."""
    assert policy.rules.keys() == {"a", "b", "c"}
    assert policy.in_mode(GuardMode.ENFORCE) == default_policy(GUARDS)
    return {name for name, rule in policy.rules.items() if rule.mode is GuardMode.SHADOW}


@pytest.mark.parametrize(("name", "expected"), WATCHING)
async def test_requests_carry_the_callers_policy(settings: dict[str, Any], name: str, expected: set[str]) -> None:
    async with serving(ScriptedEngine(guards=GUARDS), **settings) as served:
        for path, body in ((CHAT, chat()), (CHAT, chat(stream=True)), (COMPLETIONS, completion(["x", "y"], n=2))):
            response = await served.post(path, body, **authorization(name))
            assert response.status_code == 200, response.text
        policies = [request.policy for request in served.engine.submitted]
        assert [watching(policy) for policy in policies] == [expected] * 6
        assert {policy.version for policy in policies} == {shadowed(default_policy(GUARDS), expected).version}


def test_versions_tell_callers_policies_apart() -> None:
    policies = [shadowed(default_policy(GUARDS), expected) for _, expected in WATCHING]
    assert len({policy.version for policy in policies}) == len(WATCHING)


async def test_one_callers_policy_is_not_the_nexts(settings: dict[str, Any]) -> None:
    async with serving(ScriptedEngine(guards=GUARDS), **settings) as served:
        for name, _ in (*WATCHING, *reversed(WATCHING)):
            await served.post(CHAT, chat(), **authorization(name))
        seen = [watching(request.policy) for request in served.engine.submitted]
        assert seen == [expected for _, expected in (*WATCHING, *reversed(WATCHING))]


@pytest.mark.parametrize(("name", "expected"), WATCHING)
async def test_checks_and_guards_show_the_callers_modes(
    settings: dict[str, Any], name: str, expected: set[str]
) -> None:
    engine = ScriptedEngine(guards=GUARDS)
    engine.scores = tuple(score(of, Reading.INSIDE) for of in GUARDS)
    async with serving(engine, **settings) as served:
        checked = (await served.post(CHECKS, completion(), **authorization(name))).json()["data"]
        assert {row["guard"] for row in checked if row["verdict"] == "shadow"} == expected
        assert {row["guard"] for row in checked if row["verdict"] == "abstain"} == {"a", "b", "c"} - expected
        listed = (await served.client.get("/v1/guards", headers=authorization(name))).json()["data"]
        assert {row["name"] for row in listed if row["mode"] == "shadow"} == expected


@pytest.mark.parametrize("field", ["shadow", "modes", "guards", "policy", "mode"])
@pytest.mark.parametrize("value", [["a"], {"a": "shadow"}])
async def test_no_field_of_a_request_changes_them(settings: dict[str, Any], field: str, value: object) -> None:
    async with serving(ScriptedEngine(guards=GUARDS), **settings) as served:
        for path, body in ((CHAT, chat()), (COMPLETIONS, completion()), (CHECKS, completion())):
            response = await served.post(path, {**body, field: value}, **authorization("plain"))
            assert (response.status_code, response.json()["error"]["param"]) == (400, field)
        assert (served.engine.submitted, served.engine.checked) == ([], [])


@pytest.mark.parametrize("field", ["shadow", "modes", "guards", "policy", "mode"])
async def test_a_field_of_nothing_changes_nothing(settings: dict[str, Any], field: str) -> None:
    async with serving(ScriptedEngine(guards=GUARDS), **settings) as served:
        for path, body in ((CHAT, chat()), (COMPLETIONS, completion())):
            for each in body, {**body, field: None}:
                assert (await served.post(path, each, **authorization("plain"))).status_code == 200
        assert len({request.policy.version for request in served.engine.submitted}) == 1


async def test_metrics_show_the_servers_modes(settings: dict[str, Any]) -> None:
    async with serving(ScriptedEngine(guards=GUARDS), **settings) as served:
        await served.post(CHAT, chat(), **authorization("trying-a"))
        text = (await served.client.get("/metrics", headers=authorization("trying-both"))).text
        lines = [line for line in text.splitlines() if line.startswith("skillguard_guard_info{")]
        assert ['mode="shadow"' in line for line in lines] == [False, False, True]


async def refused_to_start(served: Served) -> str:
    assert (await served.client.get("/ready")).status_code == 503
    response = await served.post(CHAT, chat(), **authorization("plain"))
    assert (response.status_code, response.json()["error"]["code"]) == (503, "not_ready")
    assert served.engine.submitted == []
    return str(served.readiness.failure)


async def test_unknown_guard_in_a_key_fails_the_start(tmp_path: Path) -> None:
    file = keys_file(tmp_path, PLAIN[1], TRYING_A[1])
    async with serving(ScriptedEngine(guards=GUARDS), api_keys_file=file) as served:
        assert (await served.client.get("/ready")).status_code == 200
    async with serving(ScriptedEngine(guards=GUARDS[1:]), api_keys_file=file) as served:
        assert await refused_to_start(served) == (
            "keys file: shadow of 'trying-a': no guard named 'a'; known: b, c. Correct the name, or load the artifact"
        )


async def test_key_that_shadows_an_intervention_fails_the_start(tmp_path: Path) -> None:
    engine = ScriptedEngine(guards=(guard("a", kind=GuardKind.INTERVENTION), guard("b")))
    async with serving(engine, api_keys_file=keys_file(tmp_path, PLAIN[1], TRYING_A[1])) as served:
        assert "keys file: shadow of 'trying-a': guard 'a' changes activations" in await refused_to_start(served)


async def test_key_called_anonymous_lends_its_modes_to_nobody(tmp_path: Path) -> None:
    key, entry = new_key("anonymous", Role.USER, shadow=("a",))
    async with serving(ScriptedEngine(guards=GUARDS), api_keys_file=keys_file(tmp_path, entry)) as served:
        assert (await served.post(CHAT, chat(), authorization=f"Bearer {key}")).status_code == 200
        assert watching(served.engine.submitted[0].policy) == {"a"}
        assert (await served.post(CHAT, chat())).status_code == 401
    async with serving(ScriptedEngine(guards=GUARDS)) as served:
        await served.post(CHAT, chat(), authorization=f"Bearer {key}")
        assert watching(served.engine.submitted[0].policy) == set()
