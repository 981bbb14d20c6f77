"""The operator's page as it is served: to everybody, unchanging, and with nothing from elsewhere."""

import re
from importlib.resources import files
from pathlib import Path

import pytest

from server.auth import Role, new_key
from server.routes.page import FILES
from tests.server.harness import keys_file, serving

pytestmark = pytest.mark.anyio

NEEDED = {"index.html", "style.css", "app.js"}


async def test_it_needs_no_key_and_comes_with_a_strict_policy(tmp_path: Path) -> None:
    _, entry = new_key("k", Role.OPERATOR)
    async with serving(api_keys_file=keys_file(tmp_path, entry)) as served:
        page = await served.client.get("/ui")
        assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert FILES.keys() >= NEEDED
        for name in FILES:
            part = await served.client.get(f"/ui/{name}")
            assert part.status_code == 200
            assert part.headers["content-type"].partition(";")[0] in FILES[name]
            assert part.headers["x-content-type-options"] == "nosniff"
            assert (await served.client.head(f"/ui/{name}")).status_code == 200
        assert (await served.client.get("/v1/guards")).status_code == 401, "the positive control"


@pytest.mark.parametrize("path", ["/ui/../app.py", "/ui/..%2Fapp.py", "/ui/page.py", "/ui/", "/ui/a/b", "/ui/%2Fetc"])
async def test_nothing_else_is_served(path: str) -> None:
    async with serving() as served:
        response = await served.client.get(path)
        assert (response.status_code, response.json()["error"]["code"]) == (404, "unknown_url")


def test_it_loads_nothing_from_elsewhere_and_runs_nothing_inline() -> None:
    folder = files("server") / "ui"
    texts = {name: (folder / name).read_text() for name in FILES}
    for name, text in texts.items():
        outside = set(re.findall(r"(?:https?:)?//[a-z][a-z0-9.-]+", re.sub(r"(?m)^\s*//.*$| // .*$", "", text)))
        assert outside <= {"http://www.w3.org"}, f"{name} names an address"
        assert "innerHTML" not in text
        assert not re.search(r"\beval\(|new Function|document\.write|insertAdjacentHTML", text)
    page = texts["index.html"]
    assert re.findall(r"<script(?![^>]*\bsrc=)", page) == []
    assert not re.search(r"\son[a-z]+=|\sstyle=|<style", page)
    assert set(re.findall(r'(?:src|href)="ui/([^"]+)"', page)) <= FILES.keys()
    imported = {each for text in texts.values() for each in re.findall(r'from "\./([^"]+)"', text)}
    assert imported <= FILES.keys()
    unused = FILES.keys() - imported - set(re.findall(r'"ui/([^"]+)"', page)) - {"index.html"}
    assert not unused, f"files that nothing loads: {unused}"


@pytest.mark.parametrize(
    ("sent", "role"),
    [("operator", "operator"), ("user", "user"), ("metrics", "metrics"), ("none", None), ("wrong", None)],
)
async def test_it_learns_what_its_key_may_do(tmp_path: Path, sent: str, role: str | None) -> None:
    keys = {each.value: new_key(each.value, each) for each in (Role.OPERATOR, Role.USER, Role.METRICS)}
    file = keys_file(tmp_path, *(entry for _, entry in keys.values()))
    headers = {"authorization": f"Bearer {keys[sent][0] if sent in keys else 'sk-wrong'}"}
    async with serving(api_keys_file=file) as served:
        response = await served.client.get("/ui/session", headers={} if sent == "none" else headers)
        assert (response.status_code, response.json()) == (200, {"role": role})


@pytest.mark.parametrize("role", ["user", "operator"])
async def test_without_keys_it_learns_the_role_of_everybody(role: str) -> None:
    async with serving(anonymous_role=role) as served:
        assert (await served.client.get("/ui/session")).json() == {"role": role}
