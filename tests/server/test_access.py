"""Every route with every kind of key: also those of FastAPI and paths that do not exist."""

from pathlib import Path

import pytest

from server.auth import Role, new_key
from tests.server.harness import (
    ATTRIBUTIONS,
    CHAT,
    CHECKS,
    COMPLETIONS,
    GUARDRAIL,
    MODERATIONS,
    RESPONSES,
    chat,
    completion,
    keys_file,
    responses,
    serving,
)
from tests.server.judging import cook

pytestmark = pytest.mark.anyio

KEYS = {role: new_key(role.value, role) for role in Role}
PROBES = ["/health", "/ready", "/ping", *(f"/{of}/health/{what}" for of in ("v1", "v2") for what in ("live", "ready"))]
OPEN: list[tuple[str, str, object]] = [*(("GET", path, None) for path in PROBES), ("POST", "/ping", None)]
GUARDED = [
    ("POST", CHAT, chat()),
    ("POST", CHAT, chat(stream=True)),
    ("POST", COMPLETIONS, completion()),
    ("POST", RESPONSES, responses()),
    ("POST", RESPONSES, responses(stream=True)),
    ("POST", CHECKS, completion()),
    ("POST", MODERATIONS, {"input": "a"}),
    ("POST", GUARDRAIL, {"input_type": "request", "texts": ["a"]}),
    ("POST", "/tokenize", {"prompt": "a"}),
    ("POST", "/detokenize", {"tokens": [97]}),
    ("GET", "/version", None),
    ("GET", "/v1/models", None),
    ("GET", "/v1/models/scripted", None),
    ("GET", "/v1/guards", None),
]
ADMIN: list[tuple[str, str, object]] = [
    ("GET", "/admin/guards", None),
    ("PATCH", "/admin/guards/demo", {"mode": "shadow"}),
    ("POST", "/admin/guards/demo/reload", {}),
]
METRICS = ("GET", "/metrics", None)
AUDIT = ("GET", "/v1/audit", None)
OPERATORS: list[tuple[str, str, object]] = [
    AUDIT,
    ("GET", "/v1/verdicts", None),
    ("GET", "/openapi.json", None),
    ("POST", ATTRIBUTIONS, completion()),
]
UNKNOWN: list[tuple[str, str, object]] = [
    ("GET", "/", None),
    ("GET", "/docs", None),
    ("POST", "/v1/nothing", {}),
    ("GET", "/health/", None),
    ("GET", "//health", None),
    ("DELETE", CHAT, None),
]


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    return keys_file(tmp_path, *(entry for _, entry in KEYS.values()))


def authorization(role: Role) -> dict[str, str]:
    return {"authorization": f"Bearer {KEYS[role][0]}"}


@pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer sk-wrong"}, {"authorization": "Basic x"}])
@pytest.mark.parametrize(("method", "path", "body"), [*GUARDED, METRICS, *OPERATORS, *ADMIN, *UNKNOWN])
async def test_without_a_good_key(keys: Path, method: str, path: str, body: object, headers: dict[str, str]) -> None:
    async with serving(cook(), api_keys_file=keys) as served:
        response = await served.client.request(method, path, json=body, headers=headers)
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == "Bearer"
        assert response.headers["x-request-id"]
        error = response.json()["error"]
        assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", None, "invalid_api_key")
        assert served.engine.submitted == []


@pytest.mark.parametrize(("method", "path", "body"), [*OPEN])
async def test_probes_are_open(keys: Path, method: str, path: str, body: object) -> None:
    async with serving(cook(), api_keys_file=keys) as served:
        assert (await served.client.request(method, path)).status_code == 200


@pytest.mark.parametrize("role", [Role.USER, Role.OPERATOR, Role.ADMIN])
@pytest.mark.parametrize(("method", "path", "body"), GUARDED)
async def test_with_a_good_key(keys: Path, role: Role, method: str, path: str, body: object) -> None:
    async with serving(cook(), api_keys_file=keys) as served:
        response = await served.client.request(method, path, json=body, headers=authorization(role))
        assert response.status_code == 200


@pytest.mark.parametrize(
    ("role", "status"), [(Role.USER, 403), (Role.OPERATOR, 200), (Role.ADMIN, 200), (Role.METRICS, 403)]
)
@pytest.mark.parametrize(("method", "path", "body"), OPERATORS)
async def test_what_operators_alone_are_told(
    keys: Path, role: Role, status: int, method: str, path: str, body: object
) -> None:
    async with serving(cook(), api_keys_file=keys) as served:
        response = await served.client.request(method, path, json=body, headers=authorization(role))
        assert response.status_code == status


@pytest.mark.parametrize(
    ("role", "status"), [(Role.USER, 403), *((role, 200) for role in Role if role is not Role.USER)]
)
async def test_metrics(keys: Path, role: Role, status: int) -> None:
    async with serving(cook(), api_keys_file=keys) as served:
        response = await served.client.get("/metrics", headers=authorization(role))
        assert response.status_code == status
        if status == 403:
            assert response.json()["error"]["code"] == "insufficient_permissions"


@pytest.mark.parametrize(("method", "path", "body"), [*GUARDED, *OPERATORS, *ADMIN, *UNKNOWN])
async def test_metrics_key_reads_nothing_else(keys: Path, method: str, path: str, body: object) -> None:
    async with serving(cook(), api_keys_file=keys) as served:
        response = await served.client.request(method, path, json=body, headers=authorization(Role.METRICS))
        assert response.status_code == 403


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
@pytest.mark.parametrize(("method", "path", "body"), [*OPEN, *GUARDED, METRICS])
async def test_without_keys_everything_is_open(host: str, method: str, path: str, body: object) -> None:
    async with serving(cook(), host=host) as served:
        response = await served.client.request(method, path, json=body, headers={"authorization": "Bearer any"})
        assert response.status_code == 200


@pytest.mark.parametrize("role", [None, *(role for role in Role if role is not Role.ADMIN)])
@pytest.mark.parametrize(("method", "path", "body"), [*ADMIN, ("GET", "/admin", None), ("POST", "/admin/nothing", {})])
async def test_nobody_but_an_admin_reaches_admin_routes(
    keys: Path, role: Role | None, method: str, path: str, body: object
) -> None:
    """`None`: without keys, where an anonymous caller is an operator."""
    settings = {"anonymous_role": "operator"} if role is None else {"api_keys_file": keys}
    headers = {} if role is None else authorization(role)
    engine = cook()
    async with serving(engine, **settings) as served:
        before = served.readiness.require_running()
        response = await served.client.request(method, path, json=body, headers=headers)
        assert (response.status_code, response.json()["error"]["code"]) == (403, "insufficient_permissions")
        assert served.readiness.require_running() is before
    assert engine.offered_from == []


async def test_an_admin_reaches_them(keys: Path) -> None:
    async with serving(cook(), api_keys_file=keys) as served:
        response = await served.client.get("/admin/guards", headers=authorization(Role.ADMIN))
        assert response.status_code == 200
        unknown = await served.client.get("/admin/nothing", headers=authorization(Role.ADMIN))
        assert unknown.status_code == 404
