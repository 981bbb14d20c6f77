"""What the server says of its model and guards."""

import pytest
from openai.types import Model

from server.engines.scripted.engine import ScriptedEngine
from server.engines.scripted.scripts import guard
from tests.server.harness import serving

pytestmark = pytest.mark.anyio

FOR_USERS = {
    "name": "demo",
    "skill": "cooking",
    "method": "ksd",
    "kind": "detector",
    "mode": "enforce",
    "scope": "both",
    "verified": True,
    "template": "verified",
    "frames": ["chat"],
}


async def test_models() -> None:
    async with serving() as served:
        listed = (await served.client.get("/v1/models")).json()
        assert listed["object"] == "list"
        (model,) = listed["data"]
        Model.model_validate(model, strict=True)
        assert (model["id"], model["owned_by"]) == ("scripted", "skillguard")
        assert (await served.client.get("/v1/models/scripted")).json() == model
        missing = await served.client.get("/v1/models/gpt-4")
        assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")


async def test_guards_for_users() -> None:
    async with serving(host="0.0.0.0") as served:
        assert (await served.client.get("/v1/guards")).json() == {"object": "list", "data": [FOR_USERS]}


async def test_guards_for_operators() -> None:
    engine = ScriptedEngine(guards=(guard(), guard("other")))
    async with serving(engine, shadow=("demo",)) as served:
        rows = (await served.client.get("/v1/guards")).json()["data"]
        assert [row["name"] for row in rows] == ["demo", "other"]
        assert rows[0] == {
            **FOR_USERS,
            "mode": "shadow",
            "layers": [1, 2],
            "digest": "0" * 64,
            "template_sha256": None,
            "template_difference": None,
            "detail": {"cubes": 4},
            "reason": None,
        }
