"""What a server records of its keys file, and that nothing is answered under a change that is not recorded."""

import json
from pathlib import Path
from typing import Any

import pytest

from server.audit.verify import verify
from server.auth import Role, new_key
from server.config import AuditFailure
from tests.server.audit.test_served import told
from tests.server.harness import CHAT, Served, chat, keys_file, serving, write_tenants

pytestmark = pytest.mark.anyio

ANN, BOB, OLGA = new_key("ann", Role.USER), new_key("bob", Role.USER), new_key("olga", Role.OPERATOR)


def shown(*keys: tuple[str, Any]) -> dict[str, object]:
    return {entry.name: {"role": entry.role.value, "sha256": entry.sha256[:12]} for _, entry in keys}


def tenant(*keys: tuple[str, Any], **policy: object) -> dict[str, object]:
    return {"keys": [entry.model_dump(mode="json") for _, entry in keys], **policy}


def bearer(key: tuple[str, Any]) -> dict[str, str]:
    return {"authorization": f"Bearer {key[0]}"}


async def status(served: Served, key: tuple[str, Any]) -> int:
    return (await served.post(CHAT, chat(), **bearer(key))).status_code


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return keys_file(tmp_path, ANN[1], OLGA[1])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (folder := tmp_path / "log").mkdir()
    return folder


async def test_changes_are_recorded_before_and_after_and_hold_no_key(file: Path, folder: Path) -> None:
    off = {"demo": {"mode": "off", "tau_factor": 1.2}}
    async with serving(api_keys_file=file, audit_dir=folder) as served:
        assert await status(served, ANN) == 200
        write_tenants(file, {"team": tenant(OLGA, guards=off), "others": tenant(BOB)})
        assert await status(served, ANN) == 401, "a revoked key"
        file.write_text(file.read_text() + "}")
        assert await status(served, BOB) == 200
        write_tenants(file, {"others": tenant(BOB), "team": tenant(OLGA, guards=off)})
        assert await status(served, BOB) == 200
        file.write_text(file.read_text() + " ")
        assert await status(served, BOB) == 200
    assert verify([folder]).problems == []
    changed, broken, mended = told(folder, "admin")
    assert changed["what"] == "keys_file"
    before = {"team": {"policy": {}, "keys": shown(ANN, OLGA)}}
    after = {"team": {"policy": {"guards": off}, "keys": shown(OLGA)}, "others": {"policy": {}, "keys": shown(BOB)}}
    assert (changed["before"], changed["after"]) == (
        {"reason": None, "tenants": before},
        {"reason": None, "tenants": after},
    )
    assert (broken["before"], broken["after"]["tenants"]) == ({"reason": None, "tenants": {}}, {})
    assert "keys.json" in broken["after"]["reason"]
    assert (mended["before"], mended["after"]) == (broken["after"], broken["before"])
    text = json.dumps(told(folder))
    for key, entry in (ANN, BOB, OLGA):
        assert key not in text
        assert entry.sha256[:13] not in text


async def test_what_holds_at_the_start_is_recorded(file: Path, folder: Path) -> None:
    """So that the policy of every record can be looked up, also where the file never changes."""
    write_tenants(file, {"team": tenant(OLGA, guards={"demo": {"tau_factor": 1.2}}), "none": tenant()})
    async with serving(api_keys_file=file, audit_dir=folder):
        pass
    (start,) = told(folder, "start")
    policy = {"guards": {"demo": {"tau_factor": 1.2}}}
    assert start["keys_file"] == {"reason": None, "tenants": {"team": {"policy": policy, "keys": shown(OLGA)}}}
    async with serving(audit_dir=folder):
        pass
    assert told(folder, "start")[1]["keys_file"] is None


async def test_a_key_of_a_broken_file_that_it_no_longer_holds_is_recorded_as_gone(file: Path, folder: Path) -> None:
    async with serving(api_keys_file=file, audit_dir=folder) as served:
        file.write_text(json.dumps({"tenants": {"team": tenant(OLGA)}}) + "}")
        assert await status(served, ANN) == 503
        assert await status(served, OLGA) == 200
    (change,) = told(folder, "admin")
    assert change["before"]["tenants"]["team"]["keys"] == shown(ANN, OLGA)
    assert change["after"]["tenants"]["team"]["keys"] == shown(OLGA)


async def test_nothing_is_answered_under_a_change_that_is_not_recorded(file: Path, folder: Path) -> None:
    async with serving(api_keys_file=file, audit_dir=folder) as served:
        folder.rename(folder.with_name("away"))
        assert await status(served, ANN) == 200, "what needs no record goes out"
        write_tenants(file, {"team": tenant(BOB, OLGA)})
        for _ in range(2):
            refused = await served.post(CHAT, chat(), **bearer(BOB))
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "audit_failure")
        assert await status(served, ANN) == 401, "revoked all the same"
        for path in ("/health", "/ready", "/metrics", "/v1/models", "/v1/audit"):
            assert (await served.client.get(path, headers=bearer(OLGA))).status_code == 200
        assert len(served.engine.submitted) == 1
        folder.with_name("away").rename(folder)
        assert await status(served, BOB) == 200
    (change,) = told(folder, "admin")
    assert change["after"]["tenants"]["team"]["keys"] == shown(BOB, OLGA)


async def test_going_on_with_a_count_instead(file: Path, folder: Path) -> None:
    async with serving(api_keys_file=file, audit_dir=folder, audit_failure=AuditFailure.ANSWER) as served:
        folder.rename(folder.with_name("away"))
        write_tenants(file, {"team": tenant(BOB, OLGA)})
        assert await status(served, BOB) == 200
        folder.with_name("away").rename(folder)


async def test_a_probe_is_enough_for_a_change_to_be_recorded(file: Path, folder: Path) -> None:
    async with serving(api_keys_file=file, audit_dir=folder) as served:
        write_tenants(file, {"team": tenant(OLGA)})
        assert (await served.client.get("/ready")).status_code == 200
    assert len(told(folder, "admin")) == 1


async def test_a_tenant_that_came_later_has_series_of_its_own(file: Path) -> None:
    async with serving(api_keys_file=file) as served:
        write_tenants(file, {"default": tenant(OLGA), "late": tenant(BOB)})
        assert await status(served, BOB) == 200
        text = (await served.client.get("/metrics", headers=bearer(OLGA))).text
        answered = 'skillguard_tenant_answers_total{{outcome="answered",tenant="{}"}} {}'
        assert answered.format("late", 1.0) in text
        assert answered.format("other", 0.0) in text
