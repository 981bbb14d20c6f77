"""Against servers: a run goes on only under the guards that it began with, taus included."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.auth import Role, new_key
from server.engines.scripted.engine import ScriptedEngine
from server.errors import EvaluationError
from server.evaluation.arms import remote_arms
from server.evaluation.evaluate import Evaluation, evaluate
from server.evaluation.options import EvaluationOptions
from tests.server.evaluation.samples import engine, suites
from tests.server.harness import keys_file, listening

pytestmark = pytest.mark.anyio

OPTIONS = EvaluationOptions(concurrency=2)
KEYS = {role: new_key(role.value, role) for role in (Role.USER, Role.OPERATOR, Role.ADMIN)}


@asynccontextmanager
async def pair(folder: Path, guarded: ScriptedEngine) -> AsyncIterator[dict[str, str]]:
    """Addresses of the baseline and of a guarded server, as `remote_arms` takes them."""
    keys = keys_file(folder, *(entry for _, entry in KEYS.values()))
    (folder / "log").mkdir(exist_ok=True)
    async with (
        listening(engine(), api_keys_file=keys) as baseline,
        listening(guarded, api_keys_file=keys, audit_dir=folder / "log") as url,
    ):
        yield {"baseline": baseline, "guarded": url}


async def run(folder: Path, servers: dict[str, str], role: Role) -> dict[str, Any]:
    """What the same command gives each time."""

    def whole() -> dict[str, Any]:
        arms = remote_arms([servers["guarded"]], servers["baseline"], KEYS[role][0])
        return evaluate(Evaluation(arms, suites(folder, OPTIONS), OPTIONS), folder / "run", plots=False, quiet=True)

    return await asyncio.to_thread(whole)


async def move(servers: dict[str, str], factor: float) -> None:
    headers = {"authorization": f"Bearer {KEYS[Role.ADMIN][0]}"}
    async with httpx.AsyncClient(base_url=servers["guarded"].removesuffix("/v1"), headers=headers) as admin:
        told = await admin.patch("/admin/guards/ksd-sums", json={"tau_factor": factor})
        assert told.status_code == 200, told.text


async def test_a_run_does_not_go_on_under_other_taus(tmp_path: Path) -> None:
    played = engine("1+1")
    async with pair(tmp_path, played) as servers:
        first = await run(tmp_path, servers, Role.OPERATOR)
        assert first["settings"]["guards"]["ksd-sums"][0]["taus"] == [0.5]
        assert not any("judged by taus" in note for note in first["guards"][0]["notes"])
        asked = len(played.submitted)
        await run(tmp_path, servers, Role.OPERATOR)
        assert len(played.submitted) == asked, "the positive control: the same taus ask nothing again"

        await move(servers, 1.5)
        with pytest.raises(EvaluationError, match=r"guards.ksd-sums\[0\].taus\[0\]: got 0.75, the run has 0.5"):
            await run(tmp_path, servers, Role.OPERATOR)
        (tmp_path / "run").rename(tmp_path / "old")
        moved = await run(tmp_path, servers, Role.OPERATOR)
        assert moved["settings"]["guards"]["ksd-sums"][0]["artifact_taus"] == [0.5]
        assert "ksd-sums judged by taus 0.75, where the artifact has 0.5" in moved["guards"][0]["notes"]
        keys = [
            {json.loads(line)["key"] for line in (tmp_path / name / "items.jsonl").read_text().splitlines()}
            for name in ("old", "run")
        ]
        assert len(keys[0] & keys[1]) == 5, "the baseline's, and nothing under the guard"


async def test_with_a_users_key_no_answer_is_taken_for_another_guards(tmp_path: Path) -> None:
    async with pair(tmp_path, engine("1+1")) as servers:
        told = await run(tmp_path, servers, Role.USER)
        (guard,) = told["settings"]["guards"]["ksd-sums"]
        assert (guard["digest"], guard["taus"]) == (None, None)
        assert any("not known" in note for note in told["guards"][0]["notes"])
    recalibrated = engine("1+1", "2+2")
    async with pair(tmp_path, recalibrated) as servers:
        with pytest.raises(EvaluationError, match="ksd-sums, of which artifact or taus are not shown"):
            await run(tmp_path, servers, Role.USER)
        assert recalibrated.submitted == []


async def test_guards_that_change_while_they_are_asked_end_the_run(tmp_path: Path) -> None:
    def whole(servers: dict[str, str]) -> None:
        baseline, arm = remote_arms([servers["guarded"]], servers["baseline"], KEYS[Role.OPERATOR][0])
        assert arm.guards_now is not None
        assert arm.guards_now() == arm.guards, "the positive control"
        moved = replace(arm, guards_now=lambda: tuple(replace(each, taus=(0.1,)) for each in arm.guards))
        evaluation = Evaluation([baseline, moved], suites(tmp_path, OPTIONS), OPTIONS)
        with pytest.raises(EvaluationError, match="changed while it was asked"):
            evaluate(evaluation, tmp_path / "run", plots=False, quiet=True)

    async with pair(tmp_path, engine("1+1")) as servers:
        await asyncio.to_thread(whole, servers)
