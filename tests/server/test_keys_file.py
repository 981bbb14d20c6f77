"""The keys file of a running server: a change counts from the next request on, and whatever is unclear is closed."""

import json
import logging
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from server.audit.auditor import Auditor
from server.auth import Role, new_key
from server.engines.scripted.engine import ScriptedEngine
from server.engines.scripted.scripts import guard
from server.key_changes import KeyChanges
from server.keyring import KeysFile
from tests.server.harness import CHAT, Served, chat, keys_file, serving, write_tenants

pytestmark = pytest.mark.anyio

ANN, BOB, OLGA = new_key("ann", Role.USER), new_key("bob", Role.USER), new_key("olga", Role.OPERATOR)


def tenants(*keys: tuple[str, Any], **policy: object) -> dict[str, object]:
    return {"team": {"keys": [entry.model_dump(mode="json") for _, entry in keys], **policy}}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return keys_file(tmp_path, ANN[1], BOB[1], OLGA[1])


async def status(served: Served, key: tuple[str, Any]) -> int:
    return (await served.post(CHAT, chat(), authorization=f"Bearer {key[0]}")).status_code


async def told(served: Served, key: tuple[str, Any]) -> Any:
    """What /ready says of the file, to the holder of a key."""
    response = await served.client.get("/ready", headers={"authorization": f"Bearer {key[0]}"})
    assert response.status_code == 200
    return response.json().get("keys_file")


async def valid(served: Served) -> bool:
    text = (await served.client.get("/metrics", headers={"authorization": f"Bearer {OLGA[0]}"})).text
    (line,) = [line for line in text.splitlines() if line.startswith("skillguard_keys_file_valid ")]
    return line.endswith(" 1.0")


async def test_a_revoked_key_stops_at_once_and_a_new_one_works(file: Path) -> None:
    async with serving(api_keys_file=file) as served:
        assert [await status(served, key) for key in (ANN, BOB)] == [200, 200]
        write_tenants(file, tenants(BOB, OLGA))
        assert [await status(served, key) for key in (ANN, BOB)] == [401, 200]
        write_tenants(file, tenants(ANN, OLGA))
        assert [await status(served, key) for key in (ANN, BOB)] == [200, 401]
        assert await valid(served)


async def test_a_change_of_policy_counts_from_the_next_request_on(file: Path) -> None:
    async with serving(api_keys_file=file) as served:
        await status(served, ANN)
        write_tenants(file, tenants(ANN, guards={"demo": {"mode": "shadow"}}))
        await status(served, ANN)
        modes = [request.policy.rules["demo"].mode for request in served.engine.submitted]
        assert modes == ["enforce", "shadow"]


BROKEN = {
    "not JSON": lambda text: text + "}",
    "an unknown field": lambda text: text.replace('"tenants"', '"extra": 1, "tenants"', 1),
    "an unknown guard": lambda text: text.replace('"keys"', '"guards": {"nothing": {"mode": "off"}}, "keys"', 1),
}


@pytest.mark.parametrize("how", BROKEN)
async def test_of_a_file_that_cannot_be_used_only_keys_that_it_still_holds_go_on(
    file: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR, "skillguard")
    new = new_key("new", Role.USER)
    async with serving(api_keys_file=file) as served:
        assert await told(served, OLGA) == {"valid": True, "reason": None}
        write_tenants(file, tenants(BOB, OLGA, new, concurrent_requests=1))
        held = BROKEN[how](file.read_text())
        write_tenants(file, tenants(ANN, BOB, OLGA))
        assert [await status(served, key) for key in (ANN, BOB)] == [200, 200]

        file.write_text(held)
        assert [await status(served, key) for key in (BOB, OLGA)] == [200, 200]
        assert [await status(served, key) for key in (ANN, new)] == [503, 503], "revoked; not yet a key"
        assert not await valid(served)
        shown = await told(served, OLGA)
        assert shown["valid"] is False
        assert str(file) in shown["reason"] or "keys file" in shown["reason"]
        assert (await told(served, BOB), await told(served, ANN)) == (None, None), "operators only"
        assert caplog.text.count("go on under the last good one") == 1, "said once"

        file.write_text(BROKEN[how](json.dumps({"tenants": tenants(ANN, BOB, OLGA)})))
        assert await status(served, ANN) == 503, "what was taken out comes back with a good file only"
        write_tenants(file, tenants(ANN, OLGA))
        assert [await status(served, key) for key in (ANN, BOB, new)] == [200, 401, 401]
        assert await valid(served)


async def test_a_file_that_is_gone_lets_nobody_in(file: Path) -> None:
    async with serving(api_keys_file=file) as served:
        assert await status(served, ANN) == 200
        text = file.read_text()
        file.unlink()
        response = await served.post(CHAT, chat(), authorization=f"Bearer {ANN[0]}")
        assert (response.status_code, response.json()["error"]["code"]) == (503, "not_ready")
        assert response.headers["retry-after"]
        assert (await served.post(CHAT, chat())).status_code == 401
        assert (await served.client.get("/ready")).status_code == 200, "the probes stay open"
        file.write_text(text)
        assert await status(served, ANN) == 200


async def test_a_file_without_keys_is_not_an_open_server(file: Path) -> None:
    async with serving(api_keys_file=file) as served:
        write_tenants(file, {})
        assert await status(served, ANN) == 401
        assert (await served.post(CHAT, chat())).status_code == 401
    async with serving(api_keys_file=file) as served:
        assert (await served.post(CHAT, chat())).status_code == 401


def test_a_change_within_one_tick_of_the_clock_is_seen(file: Path) -> None:
    """Written in place, in the same size and with the same times: only the bytes differ."""
    live = KeysFile(file)
    assert live.find(ANN[1].sha256) is not None
    times = file.stat()
    text = file.read_text()
    file.write_text(text.replace(ANN[1].sha256, "0" * 64))
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    live.refresh()
    assert live.find(ANN[1].sha256) is None


def test_an_old_time_that_a_writer_gave_the_file_says_nothing(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `rsync --times` and `cp --preserve` do; two such changes within a tick of the clock look alike."""
    monkeypatch.setattr("server.keyring._signature", lambda _: ())
    os.utime(file, (1, 1))
    live = KeysFile(file)
    file.write_text(file.read_text().replace(ANN[1].sha256, "0" * 64))
    os.utime(file, (1, 1))
    live.refresh()
    assert live.find(ANN[1].sha256) is None


def test_a_file_that_rests_is_not_read_again(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: file.stat().st_ctime + 3)
    live = KeysFile(file)
    monkeypatch.setattr("builtins.open", lambda *_: pytest.fail("read again"))
    live.refresh()
    assert live.find(BOB[1].sha256) is not None


async def test_tenants_whose_guards_are_not_there_stop_the_start(tmp_path: Path) -> None:
    file = keys_file(tmp_path, ANN[1], guards={"a": {"mode": "shadow"}})
    async with serving(ScriptedEngine(guards=(guard("a"),)), api_keys_file=file) as served:
        assert await status(served, ANN) == 200
    async with serving(ScriptedEngine(guards=(guard("b"),)), api_keys_file=file) as served:
        assert await status(served, ANN) == 503
        assert served.engine.submitted == []
        assert served.readiness.failure == (
            "keys file: guards of tenant 'team': no guard named 'a'; known: b. Correct the name, or load the artifact"
        )


async def test_what_is_taken_in_at_the_end_of_a_record_is_recorded_too() -> None:
    """A task that is over stays the one that records until the event loop's next turn."""
    recorded: list[object] = []

    async def record(what: str, before: object, after: object) -> None:
        recorded.append(after)

    file = cast(KeysFile, SimpleNamespace(changes=[SimpleNamespace(before=0, after=1)], tenants=()))
    changes = KeyChanges(file, cast(Auditor, SimpleNamespace(changed=record)))
    changes.begin()
    over = changes._recording
    assert over is not None
    over.remove_done_callback(changes._recorded)  # which did not run yet
    await over
    file.changes.append(cast(Any, SimpleNamespace(before=1, after=2)))
    await changes.recorded()
    assert (recorded, file.changes) == ([1, 2], [])
