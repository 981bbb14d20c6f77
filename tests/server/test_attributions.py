"""Which tokens a verdict comes from: for operators, of their own prompt."""

from pathlib import Path

import pytest

from guards.core.trace import PartTrace
from guards.core.verdict import Reading
from server.auth import Role, new_key
from server.engines.errors import EngineBusyError
from server.engines.events import GuardTrace
from server.engines.scripted.engine import ScriptedEngine
from server.engines.scripted.scripts import guard, score
from server.routes.attributions import MOST_TOKENS
from tests.server.harness import ATTRIBUTIONS, chat, completion, keys_file, serving

pytestmark = pytest.mark.anyio

COOKING = guard("c", skill="cooking")
PART = PartTrace("cube 0", 0.5, (1.0, 0.75, 0.25), (0.1, None, 0.9), (1, 2))


def engine() -> ScriptedEngine:
    made = ScriptedEngine(guards=(COOKING,))
    made.scores, made.traces = (score(COOKING, Reading.INSIDE),), (GuardTrace("c", (PART,)),)
    return made


async def test_tokens_and_shares() -> None:
    async with serving(engine(), anonymous_role="operator") as served:
        told = (await served.post(ATTRIBUTIONS, completion("abc"))).json()
        assert len(told.pop("policy")) == 12
        assert told == {
            "object": "list",
            "model": "scripted",
            "prompt_tokens": 3,
            "tokens": ["a", "b", "c"],
            "data": [
                {
                    "guard": "c",
                    "skill": "cooking",
                    "method": "ksd",
                    "verdict": "abstain",
                    "score": 0.25,
                    "tau": 0.5,
                    "layers": [1],
                    "part": "cube 0",
                    "mode": "enforce",
                    "kind": "detector",
                    "parts": [
                        {
                            "part": "cube 0",
                            "tau": 0.5,
                            "scores": [1.0, 0.75, 0.25],
                            "shares": [0.1, None, 0.9],
                            "span": [1, 2],
                        }
                    ],
                }
            ],
        }
        assert served.engine.submitted == []


@pytest.mark.parametrize("role", [Role.USER, Role.METRICS])
async def test_others_are_told_nothing(tmp_path: Path, role: Role) -> None:
    key, entry = new_key("k", role)
    async with serving(engine(), api_keys_file=keys_file(tmp_path, entry)) as served:
        response = await served.post(ATTRIBUTIONS, completion("abc"), authorization=f"Bearer {key}")
        assert (response.status_code, response.json()["error"]["code"]) == (403, "insufficient_permissions")
        assert (served.engine.checked, served.engine.traced) == ([], [])


async def test_anonymous_users_are_told_nothing() -> None:
    async with serving(engine()) as served:
        assert (await served.error(ATTRIBUTIONS, completion("abc")))["status"] == 403


async def test_a_prompt_that_is_too_long() -> None:
    made = engine()
    async with serving(made, anonymous_role="operator") as served:
        assert (await served.post(ATTRIBUTIONS, completion("a" * MOST_TOKENS))).status_code == 200
        error = await served.error(ATTRIBUTIONS, completion("a" * (MOST_TOKENS + 1)))
        assert (error["status"], error["code"]) == (400, "context_length_exceeded")
        assert len(made.traced) == 1


async def test_bodies_are_those_of_checks() -> None:
    async with serving(engine(), anonymous_role="operator") as served:
        assert (await served.post(ATTRIBUTIONS, chat("abc"))).status_code == 200
        assert (await served.error(ATTRIBUTIONS, {}))["param"] == "prompt"
        assert (await served.error(ATTRIBUTIONS, completion("a", top_p=0.5)))["status"] == 400


async def test_what_fires_is_recorded_without_text(tmp_path: Path) -> None:
    async with serving(engine(), anonymous_role="operator", audit_dir=tmp_path) as served:
        assert (await served.post(ATTRIBUTIONS, completion("secret"))).status_code == 200
    (file,) = tmp_path.glob("*.jsonl")
    lines = [line for line in file.read_text().splitlines() if '"kind":"check"' in line]
    assert len(lines) == 1
    assert '"route":"/v1/attributions"' in lines[0]
    assert "secret" not in file.read_text()


async def test_a_reading_that_is_missing_is_an_error() -> None:
    made = engine()
    made.scores = ()
    async with serving(made, anonymous_role="operator") as served:
        error = await served.error(ATTRIBUTIONS, completion("abc"))
        assert (error["status"], error["code"]) == (500, "guard_error")
        assert made.traced == []


async def test_a_full_queue() -> None:
    made = engine()
    made.refusal = EngineBusyError("full")
    async with serving(made, anonymous_role="operator") as served:
        assert (await served.error(ATTRIBUTIONS, completion("abc")))["status"] == 429
