"""What a key of one tenant among several is told of the others: nothing, whatever its role but admin."""

from pathlib import Path
from typing import Any

import pytest

from server.auth import DEFAULT_TENANT, Role, new_key
from tests.server.harness import CHAT, Served, chat, serving, write_tenants
from tests.server.judging import cook

pytestmark = pytest.mark.anyio

ROLES = (Role.OPERATOR, Role.METRICS)
TENANTS = ("a", "b", DEFAULT_TENANT)
KEYS = {f"{tenant}-{role.value}": new_key(f"{tenant}-{role.value}", role) for tenant in TENANTS for role in ROLES}
KEYS |= {"b-user": new_key("b-user", Role.USER), "admin": new_key("admin", Role.ADMIN)}


def entries(tenant: str) -> dict[str, Any]:
    return {"keys": [entry.model_dump(mode="json") for name, (_, entry) in KEYS.items() if name.startswith(tenant)]}


def written(folder: Path, *tenants: str) -> Path:
    admin = KEYS["admin"][1].model_dump(mode="json")
    of = {tenant: entries(f"{tenant}-") for tenant in tenants}
    return write_tenants(folder / "keys.json", of, [admin])


def bearer(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer {KEYS[name][0]}"}


async def told(served: Served, name: str, path: str = "/metrics") -> str:
    response = await served.client.get(path, headers=bearer(name))
    assert response.status_code == 200, response.text
    return response.text


@pytest.mark.parametrize("role", ROLES)
async def test_metrics_of_ones_own(tmp_path: Path, role: Role) -> None:
    async with serving(cook(), api_keys_file=written(tmp_path, *TENANTS)) as served:
        await served.post(CHAT, chat("cook"), **bearer("b-user"))
        theirs, own = await told(served, f"a-{role.value}"), await told(served, f"b-{role.value}")
        samples = [line for line in theirs.splitlines() if line and not line.startswith("#")]
        assert all('tenant="a"' in line for line in samples)
        assert 'skillguard_tenant_answers_total{outcome="abstained",tenant="a"} 0.0' in samples
        assert 'skillguard_tenant_answers_total{outcome="abstained",tenant="b"} 1.0' in own.splitlines()
        for name in (f"{DEFAULT_TENANT}-{role.value}", "admin"):
            all_of_it = await told(served, name)
            assert 'skillguard_tenant_answers_total{outcome="abstained",tenant="b"} 1.0' in all_of_it.splitlines()
            assert "skillguard_ready 1.0" in all_of_it


async def test_a_tenant_that_is_called_as_the_rest_are_counted_is_not_shown_them(tmp_path: Path) -> None:
    key, entry = new_key("other", Role.METRICS)
    tenants = {"other": {"keys": [entry.model_dump(mode="json")]}, "b": entries("b-")}
    async with serving(cook(), api_keys_file=write_tenants(tmp_path / "keys.json", tenants)) as served:
        response = await served.client.get("/metrics", headers={"authorization": f"Bearer {key}"})
        assert (response.status_code, 'tenant="other"' in response.text) == (200, False)


async def test_how_much_is_recorded(tmp_path: Path) -> None:
    (tmp_path / "audit").mkdir()
    async with serving(cook(), api_keys_file=written(tmp_path, *TENANTS), audit_dir=tmp_path / "audit") as served:
        refused = await served.client.get("/v1/audit", headers=bearer("a-operator"))
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "insufficient_permissions")
        for name in (f"{DEFAULT_TENANT}-operator", "admin"):
            assert '"lines"' in await told(served, name, "/v1/audit")


async def test_what_is_wrong_with_the_keys_file(tmp_path: Path) -> None:
    file = written(tmp_path, *TENANTS)
    async with serving(cook(), api_keys_file=file) as served:
        text = file.read_text()
        file.write_text(text.replace('"b-operator"', '"b-user"'))
        assert "b-user" not in await told(served, "a-operator", "/ready")
        for name in (f"{DEFAULT_TENANT}-operator", "admin"):
            assert "'b-user' is there twice" in await told(served, name, "/ready")


async def test_the_only_tenant_is_told_all_as_long_as_there_was_no_other(tmp_path: Path) -> None:
    async with serving(cook(), api_keys_file=written(tmp_path, "a")) as served:
        assert "skillguard_ready 1.0" in await told(served, "a-metrics")
        written(tmp_path, "a", "b")
        assert "skillguard_ready" not in await told(served, "a-metrics")
        await served.post(CHAT, chat(), **bearer("b-user"))
        written(tmp_path, "a")
        assert "skillguard_ready" not in await told(served, "a-metrics"), "counters still tell of b"
