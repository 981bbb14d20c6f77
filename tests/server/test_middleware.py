"""Request ids, the limit on bodies, the log, and what happens when a route breaks."""

import json
import logging
import re
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from starlette._utils import get_route_path

from server import keyring
from server.app import create_app
from server.auth import Role, new_key
from server.config import ServerConfig
from server.engines.scripted.engine import ScriptedEngine
from server.middleware import route_path
from tests.server.harness import CHAT, COMPLETIONS, Exchange, chat, completion, keys_file, serving

pytestmark = pytest.mark.anyio

NEW_ID = re.compile(r"req_[0-9a-f]{32}")
ROUTES = [("POST", CHAT), ("GET", CHAT), ("GET", "/nothing"), ("GET", "/health"), ("GET", "/metrics")]


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_every_answer_has_a_request_id(method: str, path: str) -> None:
    async with serving() as served:
        assert NEW_ID.fullmatch((await served.client.request(method, path)).headers["x-request-id"])
        response = await served.client.request(method, path, headers={"x-request-id": "My_id-1"})
        assert response.headers.get_list("x-request-id") == ["My_id-1"]


@pytest.mark.parametrize("given", ["", "a b", "a" * 65, "é", "a\tb", "a;b", "x" * 64 + "\t"])
async def test_unfit_request_id_is_replaced(given: str) -> None:
    async with serving() as served:
        response = await served.client.get("/health", headers=[(b"x-request-id", given.encode("latin-1"))])
        assert NEW_ID.fullmatch(response.headers["x-request-id"])


async def test_streams_have_one_too() -> None:
    async with serving() as served:
        response = await served.post(CHAT, chat(stream=True), **{"x-request-id": "mine"})
        assert response.headers["x-request-id"] == "mine"


async def test_log_has_ids_and_no_prompt(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "skillguard")
    async with serving() as served:
        await served.post(CHAT, chat("my secret plan", user="ann"), **{"x-request-id": "mine"})
        await served.client.get("/my-secret-path")
    assert "mine /v1/chat/completions 200" in caplog.text
    assert "other 404" in caplog.text
    assert "secret" not in caplog.text
    assert "ann" not in caplog.text


BIG = 10 * 2**20


async def test_large_body_is_refused_by_its_declared_length() -> None:
    async with serving() as served:
        body = b" " * BIG
        exchange = Exchange(
            served.app,
            CHAT,
            parts=[body],
            headers=((b"content-type", b"application/json"), (b"content-length", str(BIG).encode())),
        )
        await exchange.run()
        assert exchange.parts == [body], "nothing of it was read"
        start, rest = await exchange.sent.get(), await exchange.sent.get()
        assert start["status"] == 413
        assert (b"connection", b"close") in start["headers"]
        assert json.loads(rest["body"])["error"]["code"] == "body_too_large"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/ping", 200),
        ("POST", "/health", 405),
        ("POST", "/ui/x", 405),
        ("GET", "/v1/models", 200),
        ("GET", "/ui/x", 404),
    ],
)
async def test_a_body_that_nobody_asks_for_is_not_read(method: str, path: str, status: int) -> None:
    async with serving() as served:
        exchange = Exchange(served.app, path, parts=[b" " * 1024] * 8, method=method)
        await exchange.run()
        assert ((await exchange.sent.get())["status"], len(exchange.parts)) == (status, 8)


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, "/nothing"])
async def test_large_chunked_body_is_refused_while_it_arrives(path: str) -> None:
    async with serving() as served:
        piece = 64 * 1024
        exchange = Exchange(served.app, path, parts=[b" " * piece for _ in range(BIG // piece)])
        await exchange.run()
        assert len(exchange.parts) == (BIG - 2**20) // piece - 1, "it read one piece past the limit"
        assert (await exchange.sent.get())["status"] == 413


async def test_large_body_over_a_client() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(160):
            yield b" " * 65536

    async with serving() as served:
        headers = {"content-type": "application/json"}
        for content in b" " * BIG, pieces():
            response = await served.client.post(CHAT, content=content, headers=headers)
            assert (response.status_code, response.json()["error"]["param"]) == (413, None)
            assert "1048576 bytes" in response.json()["error"]["message"]


async def test_limit_is_exact() -> None:
    body = json.dumps(completion("x")).encode()
    async with serving(max_body_bytes=1024) as served:
        headers = {"content-type": "application/json"}
        for size, status in ((1024, 200), (1025, 413)):
            response = await served.client.post(COMPLETIONS, content=body.ljust(size), headers=headers)
            assert response.status_code == status


@pytest.mark.parametrize("length", [b"ten", b"-1", b"1.5", b""])
async def test_content_length_that_is_no_number(length: bytes) -> None:
    async with serving() as served:
        exchange = Exchange(served.app, CHAT, parts=[b"{}"], headers=((b"content-length", length),))
        await exchange.run()
        assert (await exchange.sent.get())["status"] == 400


class Broken(ScriptedEngine):
    def encode_text(self, text: str, *, opened: bool = True) -> tuple[int, ...]:
        raise RuntimeError("/root/secret.py")


@pytest.mark.parametrize("stream", [False, True])
async def test_bug_is_a_500_that_tells_only_the_log(caplog: pytest.LogCaptureFixture, stream: bool) -> None:
    async with serving(Broken()) as served:
        response = await served.post(COMPLETIONS, completion(stream=stream), **{"x-request-id": "mine"})
        assert response.status_code == 500
        assert response.json() == {
            "error": {
                "message": "The server failed on this request. Quote request id mine.",
                "type": "server_error",
                "param": None,
                "code": "internal_error",
            }
        }
    assert "mine failed" in caplog.text
    assert "/root/secret.py" in caplog.text


async def test_apps_share_nothing() -> None:
    async with serving() as one, serving() as other:
        await one.post(CHAT, chat())
        assert await one.metric("skillguard_verified_requests_total") == 1
        assert await other.metric("skillguard_verified_requests_total") == 0


async def test_app_can_be_made_without_being_started() -> None:
    app = create_app(ScriptedEngine(), ServerConfig())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://localhost") as client:
        assert (await client.get("/health")).status_code == 200
        assert (await client.post(CHAT, json=chat())).status_code == 503


@pytest.mark.parametrize("prefix", ["", "/", "/a", "/m", "/m/", "/admin", "/ui", "/admin/guards", "m"])
@pytest.mark.parametrize(
    "path", ["/admin/guards", "/m/admin/guards", "/madmin/guards", "/a/m", "/ui/x", "/m", "m/ui", "//a"]
)
def test_keys_are_checked_for_the_path_that_the_routes_see(prefix: str, path: str) -> None:
    scope = {"type": "http", "path": path, "root_path": prefix}
    assert route_path(scope) == get_route_path(scope)


@pytest.mark.parametrize("prefix", ["/", "/a", "/m", "/admin"])
@pytest.mark.parametrize("asked", ["/admin/guards", "/admin/admin/guards", "/m/admin/guards"])
async def test_no_prefix_lets_anybody_change_guards(tmp_path: Path, prefix: str, asked: str) -> None:
    key, entry = new_key("ann", Role.OPERATOR)
    app = create_app(ScriptedEngine(), ServerConfig(api_keys_file=keys_file(tmp_path, entry)))
    transport = httpx.ASGITransport(app=app, root_path=prefix)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        response = await client.get(asked, headers={"authorization": f"Bearer {key}"})
        assert response.status_code in (403, 404), "503 would be of the route itself"


async def test_admin_routes_look_at_the_role_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyring, "is_admin_path", lambda path: False)
    key, entry = new_key("ann", Role.OPERATOR)
    async with serving(api_keys_file=keys_file(tmp_path, entry)) as served:
        headers = {"authorization": f"Bearer {key}"}
        for method, path, body in (
            ("GET", "/admin/guards", None),
            ("PATCH", "/admin/guards/demo", {"mode": "shadow"}),
            ("POST", "/admin/guards/demo/reload", {}),
        ):
            response = await served.client.request(method, path, json=body, headers=headers)
            assert (response.status_code, response.json()["error"]["code"]) == (403, "insufficient_permissions")
