"""Request ids, the limit on bodies, the log, and what happens when a route breaks."""

import json
import logging
import re
from collections.abc import AsyncIterator

import httpx
import pytest

from server.app import create_app
from server.config import ServerConfig
from server.engines.scripted.engine import ScriptedEngine
from tests.server.harness import CHAT, COMPLETIONS, Exchange, chat, completion, serving

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


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, "/nothing", "/health"])
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
