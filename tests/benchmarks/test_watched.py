"""A spike goes through the real Prometheus and the real Alertmanager to a receiver, with last week behind it."""

import asyncio
import errno
import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.watched.components import MissingProgramError, Receiver, program
from benchmarks.watched.load import mixed, prompts
from benchmarks.watched.plots import draw
from benchmarks.watched.queries import asked
from benchmarks.watched.run import GONE, SPIKE, usual_then_spike, watching
from server.audit.folder import AuditFolder
from server.auth import Role, new_key
from server.engines.events import Finish, FinishReason
from server.engines.scripted.engine import ScriptedEngine
from server.engines.scripted.scripts import Script, abstention, answer, guard, hit
from tests.programs import needed
from tests.server.harness import chat, keys_file, listening

SKILL = "cooking"
needs_programs = pytest.mark.usefixtures("programs")


@pytest.fixture
def programs() -> None:
    """Skips, or fails in CI, where one is missing."""
    needed("prometheus", "prometheus")
    if shutil.which("alertmanager") is None:
        needed("prometheus-alertmanager", "prometheus-alertmanager")


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@needs_programs
@pytest.mark.anyio
async def test_a_spike_is_told_and_the_usual_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And so is an answer that no guard read, and a disk that is full."""
    key, entry = new_key("everything", Role.OPERATOR)
    (credentials := tmp_path / "metrics.key").write_text(key)
    engine = ScriptedEngine(
        [
            Script(abstention(hit(guard())), when=lambda prompt: "cook" in prompt),
            Script((Finish(FinishReason.ERROR, 0, 0, verified=False),), when=lambda prompt: "break" in prompt),
            Script(answer("a")),
        ]
    )
    usual = ["cook", *["hi"] * 9] * 10
    (log := tmp_path / "log").mkdir()
    async with listening(engine, api_keys_file=keys_file(tmp_path, entry), audit_dir=log) as api:
        (folder := tmp_path / "watching").mkdir()

        def ask(texts: Sequence[str]) -> int:
            with httpx.Client(base_url=api, headers={"authorization": f"Bearer {key}"}) as client:
                answers = [client.post("/chat/completions", json=chat(text)) for text in texts]
            return sum("content_filter" in each.text for each in answers)

        def watch() -> dict[str, Any]:
            server = api.removeprefix("http://").removesuffix("/v1")
            with watching(folder, server, credentials, SKILL, 0.1) as watched:
                found = usual_then_spike(watched, ask, usual, ["cook"] * 100)
                ask(["break"])
                watched.await_alert("SkillguardUnverified", time.monotonic())
                monkeypatch.setattr(AuditFolder, "append", full)
                assert ask(["cook"]) == 0, "what cannot be recorded is not answered"
                watched.await_alert("SkillguardAuditFailing", time.monotonic())
                return found

        found = await asyncio.to_thread(watch)
    assert found["usual"] == {"requests": 100, "withheld": 10, "share": 0.1, "firing": [], "told": []}
    spike = found["spike"]
    assert (spike["withheld"], spike["share"], spike["firing"], spike["told"]) == (100, 0.55, [SPIKE], [SPIKE])
    assert spike["alert"]["labels"]["skill"] == SKILL
    assert "% of the last hour's answers were withheld for cooking" in spike["alert"]["annotations"]["summary"]


def test_a_missing_program_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MissingProgramError, match="got no prometheus; install Debian's packages prometheus and"):
        program("prometheus")


def test_an_alert_counts_once_it_fires() -> None:
    told = Receiver()
    alerts = [(GONE, "resolved"), (SPIKE, "firing"), (GONE, "firing")]
    for name, status in alerts:
        told.tell(json.dumps({"alerts": [{"labels": {"alertname": name}, "status": status}]}).encode())
    assert told.wait_for(GONE)[1]["status"] == "firing"
    assert told.names() == {SPIKE, GONE}


def test_queries_hold_no_variable_of_grafana() -> None:
    assert [each.expr for each in asked() if "$" in each.expr] == []


def test_a_load_holds_the_share() -> None:
    texts = mixed("code", 100, 0.1)
    assert (len(texts), sum(text in set(prompts("code")) for text in texts)) == (100, 10)


@pytest.mark.parametrize("dashboard", ["skillguard-guards", "skillguard-overview", "skillguard-serving"])
def test_every_panel_is_drawn_with_data_and_without(tmp_path: Path, dashboard: str) -> None:
    queries = [each for each in asked() if each.dashboard == dashboard]
    metric = {"le": "0.5", "guard": "a"}
    over = {"metric": metric, "values": [[0, "0"], [1, "1"]]}
    more = {"metric": {**metric, "le": "+Inf"}, "values": [[0, "1"], [1, "NaN"]]}
    full = [(each, [{"metric": metric, "value": [1, "1"]}] if each.is_instant else [over, more]) for each in queries]
    for name, found in (("full", full), ("empty", [(each, []) for each in queries])):
        draw(name, found, tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
