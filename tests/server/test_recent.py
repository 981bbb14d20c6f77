"""The last verdicts: in memory, bounded, without text, each tenant's its own."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from guards.core.verdict import GuardMode, Reading
from server.auth import ADMINS, KeyEntry, Role, new_key
from server.engines.events import Finish
from server.engines.scripted.engine import ScriptedEngine
from server.engines.scripted.scripts import Script, answer, score
from server.recent import MOST
from tests.server.harness import CHAT, CHECKS, MODERATIONS, Served, chat, completion, serving
from tests.server.judging import COOKING, cook

pytestmark = pytest.mark.anyio

VERDICTS = "/v1/verdicts"


async def listed(served: Served, query: str = "", **headers: str) -> list[dict[str, Any]]:
    response = await served.client.get(VERDICTS + query, headers=headers)
    assert response.status_code == 200, response.text
    data: list[dict[str, Any]] = response.json()["data"]
    return data


async def test_an_abstention() -> None:
    async with serving(cook(), anonymous_role="operator") as served:
        await served.post(CHAT, chat("cook this"))
        (told,) = await listed(served)
        assert told["time"] > 0
        assert told["request"].startswith("req_")
        assert {name: told[name] for name in ("route", "key", "tenant", "outcome", "completion_tokens")} == {
            "route": CHAT,
            "key": "anonymous",
            "tenant": "anonymous",
            "outcome": "abstained",
            "completion_tokens": 1,
        }
        assert told["guards"][0] == {
            "guard": "c",
            "digest": "0" * 64,
            "mode": "enforce",
            "verdict": "abstain",
            "score": 0.25,
            "tau": 0.5,
            "part": "cube 0",
            "over_tau": None,
            "quantile": None,
            "stage": "prompt",
            "position": 7,
        }
        assert told["guards"][1]["verdict"] == "allow"
        assert "cook" not in json.dumps(told).replace(told["policy"], "")


async def test_the_newest_first() -> None:
    async with serving(cook(), anonymous_role="operator") as served:
        for text in ("a", "cook", "break"):
            await served.post(CHAT, chat(text))
        assert [each["outcome"] for each in await listed(served)] == ["error", "abstained", "answered"]
        assert len(await listed(served, "?limit=2")) == 2


async def test_a_shadow_hit() -> None:
    async with serving(cook(mode=GuardMode.SHADOW), shadow=("c",), anonymous_role="operator") as served:
        await served.post(CHAT, chat("cook"))
        (told,) = await listed(served)
        assert (told["outcome"], told["guards"][0]["verdict"], told["guards"][0]["mode"]) == (
            "answered",
            "shadow",
            "shadow",
        )


async def test_streams_and_judged_texts_count_and_checks_do_not() -> None:
    async with serving(cook(), anonymous_role="operator") as served:
        await served.stream(CHAT, chat("cook"))
        await served.post(MODERATIONS, {"input": ["cook", "a"]})
        await served.post(CHECKS, completion("cook"))
        assert sorted(each["outcome"] for each in await listed(served)) == ["abstained", "abstained", "answered"]


async def test_a_score_that_is_not_finite_is_none() -> None:
    made = cook()
    scores = (replace(score(COOKING, Reading.INVALID), score=float("nan")),)
    steps = [replace(each, prompt_scores=scores) if isinstance(each, Finish) else each for each in answer("a")]
    made.scripts = [Script(tuple(steps))]
    async with serving(made, anonymous_role="operator") as served:
        await served.post(CHAT, chat("a"))
        (told,) = await listed(served)
        assert told["guards"][0]["score"] is None


async def test_it_is_bounded() -> None:
    async with serving(ScriptedEngine(), anonymous_role="operator") as served:
        for _ in range(MOST // 8 + 1):
            await served.post(CHAT, chat(n=8))
        assert len(await listed(served, f"?limit={MOST}")) == MOST
        assert len(await listed(served)) == 100


@pytest.mark.parametrize("limit", ["0", str(MOST + 1), "-1", "x"])
async def test_a_limit_out_of_bounds(limit: str) -> None:
    async with serving(anonymous_role="operator") as served:
        response = await served.client.get(f"{VERDICTS}?limit={limit}")
        error = response.json()["error"]
        assert (response.status_code, error["code"], error["param"]) == (400, "invalid_value", "limit")


async def test_users_see_none() -> None:
    async with serving(cook()) as served:
        await served.post(CHAT, chat("cook"))
        response = await served.client.get(VERDICTS)
        assert (response.status_code, response.json()["error"]["code"]) == (403, "insufficient_permissions")


async def test_operators_see_their_tenant_and_admins_see_all(tmp_path: Path) -> None:
    keys: dict[str, str] = {}
    tenants: dict[str, dict[str, list[object]]] = {}
    for name in ("a", "b"):
        keys[name], entry = new_key(name, Role.OPERATOR)
        tenants[name] = {"keys": [entry.model_dump(mode="json")]}
    keys["boss"], boss = new_key("boss", Role.ADMIN)
    path = tmp_path / "keys.json"
    path.write_text(json.dumps({"tenants": tenants, "admins": [_entry(boss)]}))

    async with serving(cook(), api_keys_file=path) as served:
        for name, key in keys.items():
            response = await served.post(CHAT, chat("a" if name == "a" else "cook"), authorization=f"Bearer {key}")
            assert response.status_code == 200
        seen = {
            name: [each["tenant"] for each in await listed(served, authorization=f"Bearer {key}")]
            for name, key in keys.items()
        }
        assert seen == {"a": ["a"], "b": ["b"], "boss": [ADMINS, "b", "a"]}


def _entry(entry: KeyEntry) -> object:
    return entry.model_dump(mode="json")
