"""Pages of other origins: nobody's by default, and those that the operator names."""

from pathlib import Path

import pytest

from server.auth import Role, new_key
from tests.server.harness import CHAT, chat, keys_file, serving

pytestmark = pytest.mark.anyio

HERE, ELSEWHERE = "https://chat.example.org", "https://elsewhere.example.org"
ASKS = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,content-type"}
ALLOWED = "access-control-allow-origin"


async def test_closed_by_default() -> None:
    async with serving() as served:
        asked = await served.client.options(CHAT, headers={"origin": HERE, **ASKS})
        assert (asked.status_code, ALLOWED in asked.headers) == (405, False)
        assert ALLOWED not in (await served.post(CHAT, chat(), origin=HERE)).headers


async def test_a_named_origin(tmp_path: Path) -> None:
    key, entry = new_key("web", Role.USER)
    async with serving(allowed_origins=(HERE,), api_keys_file=keys_file(tmp_path, entry)) as served:
        asked = await served.client.options(CHAT, headers={"origin": HERE, **ASKS})
        assert (asked.status_code, asked.headers[ALLOWED]) == (200, HERE)
        assert "authorization" in asked.headers["access-control-allow-headers"].lower()
        answered = await served.post(CHAT, chat(), origin=HERE, authorization=f"Bearer {key}")
        assert (answered.status_code, answered.headers[ALLOWED]) == (200, HERE)
        assert "x-request-id" in answered.headers["access-control-expose-headers"]
        refused = await served.post(CHAT, chat(), origin=HERE)
        assert (refused.status_code, refused.headers[ALLOWED]) == (401, HERE), "pages read errors too"
        other = await served.client.options(CHAT, headers={"origin": ELSEWHERE, **ASKS})
        assert (other.status_code, ALLOWED in other.headers) == (400, False)
        stranger = await served.post(CHAT, chat(), origin=ELSEWHERE, authorization=f"Bearer {key}")
        assert ALLOWED not in stranger.headers


async def test_every_origin() -> None:
    async with serving(allowed_origins=("*",)) as served:
        answered = await served.post(CHAT, chat(), origin=ELSEWHERE)
        assert answered.headers[ALLOWED] == "*"
        assert "access-control-allow-credentials" not in answered.headers
