"""A served scripted engine that an admin changes."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx

from guards.core.policy import Rule
from guards.core.verdict import GuardKind
from server.auth import Role, new_key
from server.engines.scripted.engine import ScriptedEngine
from server.engines.scripted.scripts import guard
from tests.server.harness import CHAT, Served, chat, keys_file, serving

ADMIN, USER = new_key("ops", Role.ADMIN), new_key("ann", Role.USER)
OPS, ANN = ({"authorization": f"Bearer {key}"} for key, _ in (ADMIN, USER))
ACTING = guard("acting", kind=GuardKind.INTERVENTION)
NEW = replace(guard(), digest="1" * 64, rule=Rule(taus=(0.75,)))
OLD_ROW = {
    "name": "demo",
    "skill": "cooking",
    "method": "ksd",
    "kind": "detector",
    "digest": "0" * 64,
    "pinned": False,
    "signed_by": [],
    "mode": "enforce",
    "taus": [0.5],
    "artifact_taus": [0.5],
    "changed_by": [],
    "acts_after": [],
    "verified": True,
    "template": "verified",
}


@asynccontextmanager
async def administered(
    folder: Path, engine: ScriptedEngine | None = None, *, policy: Mapping[str, Any] | None = None, **settings: Any
) -> AsyncIterator[Served]:
    (folder / "log").mkdir(exist_ok=True)
    keys = keys_file(folder, ADMIN[1], USER[1], **(policy or {}))
    engine = engine or ScriptedEngine(guards=(guard(), ACTING))
    engine.offers.setdefault("demo", NEW)
    async with serving(engine, api_keys_file=keys, audit_dir=folder / "log", **settings) as served:
        yield served


async def listed(served: Served) -> dict[str, Any]:
    response = await served.client.get("/admin/guards", headers=OPS)
    assert response.status_code == 200
    report: dict[str, Any] = response.json()
    return report


async def patch(served: Served, change: object, name: str = "demo") -> httpx.Response:
    return await served.client.patch(f"/admin/guards/{name}", json=change, headers=OPS)


async def reload(served: Served, body: object = None, name: str = "demo") -> httpx.Response:
    return await served.client.post(f"/admin/guards/{name}/reload", json=body, headers=OPS)


async def rule_of_next(served: Served) -> Rule:
    """Under which a user's next request is judged."""
    assert (await served.post(CHAT, chat(), **ANN)).status_code == 200
    return served.engine.submitted[-1].policy.rules["demo"]


async def changes(served: Served, what: str, outcome: str) -> float:
    text = (await served.client.get("/metrics", headers=OPS)).text
    name = f'skillguard_guard_changes_total{{guard="demo",outcome="{outcome}",what="{what}"}} '
    (value,) = [line.removeprefix(name) for line in text.splitlines() if line.startswith(name)]
    return float(value)
