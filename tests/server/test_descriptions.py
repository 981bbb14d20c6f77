"""What the server says of its model and guards."""

from dataclasses import replace

import httpx
import pytest
from openai.types import Model

from guards.core.beside import Beside
from guards.core.version import version
from server.engines.scripted.engine import ScriptedEngine
from server.engines.scripted.scripts import guard
from tests.server.harness import Served, listening, serving

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
        assert (model["id"], model["owned_by"], model["max_model_len"]) == ("scripted", "skillguard", 4096)
        assert (await served.client.get("/v1/models/scripted")).json() == model
        missing = await served.client.get("/v1/models/gpt-4")
        assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")


async def test_guards_for_users() -> None:
    async with serving() as served:
        assert (await served.client.get("/v1/guards")).json() == {"object": "list", "data": [FOR_USERS]}


async def test_guards_for_operators() -> None:
    engine = ScriptedEngine(guards=(replace(guard(), beside=Beside(("acting",))), guard("other")))
    async with serving(engine, shadow=("demo",), anonymous_role="operator") as served:
        rows = (await served.client.get("/v1/guards")).json()["data"]
        assert [row["name"] for row in rows] == ["demo", "other"]
        assert rows[0] == {
            **FOR_USERS,
            "mode": "shadow",
            "taus": [0.5],
            "artifact_taus": [0.5],
            "layers": [1, 2],
            "digest": "0" * 64,
            "pinned": False,
            "signed_by": [],
            "template_sha256": None,
            "template_difference": None,
            "detail": {"cubes": 4},
            "changed_by": ["acting"],
            "acts_after": [],
            "reason": None,
        }


async def test_version() -> None:
    async with serving() as served:
        told = (await served.client.get("/version")).json()
        assert told == {"version": version(), "engine": "scripted", "engine_version": "1"}


async def test_ping_is_good_once_requests_are_answered() -> None:
    engine = ScriptedEngine()
    engine.may_verify.clear()
    async with serving(engine, settled=False) as served:
        assert (await served.client.get("/ping")).status_code == 503
        engine.may_verify.set()
        await served.readiness.settled.wait()
        for method in "GET", "HEAD", "POST":
            assert (await served.client.request(method, "/ping")).status_code == 200


HEALTH = ("/v1/health/live", "/v1/health/ready", "/v2/health/live", "/v2/health/ready")
READ = (
    "/v1/models",
    "/v1/models/scripted",
    "/v1/guards",
    "/v1/audit",
    "/v1/verdicts",
    "/ui",
    "/ui/session",
    "/ui/app.js",
    "/version",
    "/openapi.json",
    "/health",
    "/ready",
    "/ping",
    "/metrics",
    *HEALTH,
)


async def test_health_as_other_charts_expect_it() -> None:
    def nim(status: str) -> dict[str, str]:
        return {"object": "health.response", "message": f"Service is {status}.", "status": status}

    async def told(served: Served) -> list[tuple[int, object]]:
        answers = [await served.client.get(path) for path in HEALTH]
        return [(answer.status_code, answer.json()) for answer in answers]

    engine = ScriptedEngine()
    engine.may_verify.clear()
    alive, ready = (200, nim("live")), (200, nim("ready"))
    async with serving(engine, settled=False) as served:
        assert await told(served) == [alive, (503, nim("not ready")), (200, {"live": True}), (503, {"ready": False})]
        engine.may_verify.set()
        await served.readiness.settled.wait()
        assert await told(served) == [alive, ready, (200, {"live": True}), (200, {"ready": True})]
        engine.alive = False
        dead = [(503, nim("not live")), (503, nim("not ready")), (503, {"live": False}), (503, {"ready": False})]
        assert await told(served) == dead


async def test_head_is_served_wherever_get_is() -> None:
    async with serving() as served:
        routes = [(getattr(route, "path", ""), getattr(route, "methods", ())) for route in served.app.routes]
        paths = {path for path, methods in routes if "GET" in methods}
        assert paths == {*READ, "/v1/models/{model_id:path}", "/admin/guards", "/ui/{name}"} - {
            "/v1/models/scripted",
            "/ui/app.js",
        }
    async with listening(ScriptedEngine(), anonymous_role="operator") as url, httpx.AsyncClient() as client:
        for path in READ:
            told, asked = [await client.request(method, url.removesuffix("/v1") + path) for method in ("GET", "HEAD")]
            assert (asked.status_code, asked.content) == (told.status_code, b"") == (200, b"")
            assert asked.headers["content-type" if path != "/ping" else "content-length"]
