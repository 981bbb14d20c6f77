"""Which Host headers are answered."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from server.auth import Role, new_key
from server.config import ServerConfig
from tests.server.harness import CHAT, chat, keys_file, serving

pytestmark = pytest.mark.anyio

OURS = ["localhost", "localhost:8000", "LOCALHOST.", "127.0.0.1:8000", "[::1]:8000", "[::1]", "10.1.2.3", "a.localhost"]
OTHERS = ["evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "", "a@localhost"]


async def _status(host: str, /, path: str = "/v1/models", **settings: Any) -> int:
    async with serving(**settings) as served:
        return (await served.client.get(path, headers={"host": host})).status_code


@pytest.mark.parametrize("host", OURS)
async def test_addresses_and_localhost_are_ours(host: str) -> None:
    assert await _status(host) == 200


@pytest.mark.parametrize("host", OTHERS)
async def test_a_page_of_another_origin_gets_nothing(host: str) -> None:
    async with serving() as served:
        for path in ("/v1/models", "/metrics", "/ready", "/ui", "/nothing"):
            response = await served.client.get(path, headers={"host": host, "origin": f"http://{host}"})
            assert (response.status_code, response.json()["error"]["code"]) == (421, "misdirected_request"), path
        assert (await served.post(CHAT, chat(), host=host)).status_code == 421
        assert served.engine.submitted == []


@pytest.mark.parametrize(
    ("host", "status"),
    [("chat.example.org", 200), ("a.b.example.net:80", 200), ("example.net", 421), ("evil.example", 421)],
)
@pytest.mark.parametrize("listens", ["127.0.0.1", "0.0.0.0"])
async def test_names_that_are_allowed(host: str, status: int, listens: str) -> None:
    allowed = ("chat.example.org", "*.example.net")
    assert await _status(host, host=listens, allowed_hosts=allowed) == status


async def test_any_name_is_right_where_others_connect() -> None:
    assert await _status("skillguard", host="0.0.0.0") == 200
    assert await _status("evil.example", allowed_hosts=("*",)) == 200


async def test_keys_protect_by_themselves(tmp_path: Path) -> None:
    key, entry = new_key("ann", Role.USER)
    async with serving(api_keys_file=keys_file(tmp_path, entry)) as served:
        headers = {"host": "chat.example.org", "authorization": f"Bearer {key}"}
        assert (await served.client.get("/v1/models", headers=headers)).status_code == 200


@pytest.mark.parametrize("name", ["https://chat.example.org", "chat.example.org:80", "Chat.example.org", "", "*."])
def test_a_name_that_no_host_is_like_is_refused(name: str) -> None:
    with pytest.raises(ValidationError, match="without a port"):
        ServerConfig(allowed_hosts=(name,))
