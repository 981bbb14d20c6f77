"""A tiny model with two guards of one name, which fire on different texts, and 64 callers who ask while one is put in
the other's place.

Prompts share long beginnings, so that after the exchange most of each is found in the cache of prefixes, beside what
the guard before kept there.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from guards.artifact.store import read_artifact, write_artifact
from guards.contract.spans import MessageMean, Rise
from guards.core.verdict import Scope
from guards.inside.transformers.loading import LoadedModel, load_model
from guards.methods.spans.guard import DirectionFitter, Judgement, SpanGuard
from server.app import create_app
from server.audit.verify import verify
from server.auth import Role, new_key
from server.config import ServerConfig
from tests.served import retain_prompt, save_tiny_model, write_guard
from tests.server.engines.embedded.test_spans import LAYERS, TURNED, windows
from tests.server.harness import COMPLETIONS, events_of, keys_file

NAME = "tens"
CALLERS, ROUNDS, ANSWER_TOKENS = 64, 3, 6
_WAIT_SECONDS = 300
Ids = tuple[int, ...]

TENS: Ids = (10, 11, 12)
FIFTIES: Ids = (50, 51, 52)
NEITHER: Ids = (28, 29, 30)
BEGINNINGS: Mapping[Ids, Ids] = {
    skill: (1, *([24, 25, 26, 27] * 6), *(skill * 14)) for skill in (TENS, FIFTIES, NEITHER)
}
"""Each 67 tokens long: two pages of the cache, and more."""


def prompt(skill: Ids, index: int) -> Ids:
    """It asks for the skill behind one of 20 endings."""
    return (*BEGINNINGS[skill], 30 + index % 20)


PROMPTS = [prompt(skill, index) for index in range(20) for skill in BEGINNINGS]


def guard_for(loaded: LoadedModel, skill: Ids) -> SpanGuard:
    """It fires where a text holds much of the skill."""
    behind = [(1, *chain.from_iterable(retain_prompt(i + j)[1:] for j in range(1 + i % 16))) for i in range(100, 140)]
    others = [beginning for of, beginning in BEGINNINGS.items() if of != skill]
    forget = windows(loaded, [*((*each, *skill * 4) for each in behind), BEGINNINGS[skill]], -12)
    retain = windows(loaded, [*behind, *others], 1)
    judgements = (
        Judgement(Rise(0.5, written=False), 0.25),
        Judgement(MessageMean(4, written=False), 0.35),
        Judgement(Rise(0.5, written=True), 0.25),
    )
    return SpanGuard(DirectionFitter(forget, retain).finish(LAYERS), judgements, Scope.PROMPT)


@dataclass(frozen=True)
class Served:
    """A model's folder, and artifacts of one guard: of tens, and of fifties."""

    model: Path
    old: Path
    new: Path

    @property
    def digests(self) -> dict[Path, str]:
        return {folder: read_artifact(folder).digest for folder in (self.old, self.new)}


def write_served(folder: Path, **changes: Any) -> Served:
    """A tiny model, with changes of its configuration, and its artifacts."""
    model = save_tiny_model(folder / "model", template=TURNED, **changes)
    loaded = load_model(model, "cpu", "float32")
    canaries = [prompt(skill, index) for index in range(2) for skill in BEGINNINGS]
    old, new = (
        write_guard(folder / version / NAME, loaded, guard_for(loaded, skill), canaries)
        for version, skill in (("old", TENS), ("new", FIFTIES))
    )
    return Served(model, old, new)


ADMIN, USER = new_key("ops", Role.ADMIN), new_key("ann", Role.USER)
TENANT = "team"
"""The user's: cached prefixes are a tenant's own."""


@dataclass(frozen=True)
class Answer:
    """What somebody asked and got; `id` as records of it begin."""

    ids: Ids
    text: str
    reason: str
    id: str

    @property
    def skill(self) -> Ids:
        return self.ids[25:28]


@dataclass
class Running:
    """A server, its clients and its audit log."""

    app: FastAPI
    client: httpx.AsyncClient
    audit: Path

    async def reload(self, folder: Path) -> httpx.Response:
        headers = {"authorization": f"Bearer {ADMIN[0]}"}
        return await self.client.post(f"/admin/guards/{NAME}/reload", json={"path": str(folder)}, headers=headers)

    async def ask(self, ids: Ids) -> Answer:
        """A streamed answer. Anything but a whole stream is an error."""
        body = {"prompt": list(ids), "stream": True, "max_tokens": ANSWER_TOKENS, "temperature": 0}
        response = await self.client.post(COMPLETIONS, json=body, headers={"authorization": f"Bearer {USER[0]}"})
        assert response.status_code == 200, response.text
        events = events_of(response.text)
        assert events[-1] == "[DONE]", events[-1]
        choices = [choice for event in events[:-1] for choice in event["choices"]]
        text = "".join(choice["text"] for choice in choices)
        return Answer(ids, text, choices[-1]["finish_reason"], events[0]["id"])

    def told(self, *kinds: str) -> list[dict[str, Any]]:
        """Records of these kinds, in order."""
        lines = b"".join(path.read_bytes() for path in sorted(self.audit.glob("audit-*.jsonl"))).splitlines()
        records = [json.loads(line) for line in lines]
        return [each for each in records if not kinds or each["kind"] in kinds]


@asynccontextmanager
async def serving(engine: Any, folder: Path) -> AsyncIterator[Running]:
    """A server of this engine which records every reading."""
    (audit := folder / "audit").mkdir()
    keys = keys_file(folder, ADMIN[1], USER[1], tenant=TENANT)
    config = ServerConfig(api_keys_file=keys, audit_dir=audit, audit_scores=(NAME,), abstain_text="no")
    app = create_app(engine, config)
    transport = httpx.ASGITransport(app=app)
    async with (
        asyncio.timeout(_WAIT_SECONDS),
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=None) as client,
    ):
        readiness = app.state.services.readiness
        await readiness.settled.wait()
        assert readiness.ready, readiness.failure
        yield Running(app, client, audit)


def lie(served: Served, folder: Path) -> Path:
    """The new artifact with a canary that says another score than its guard's."""
    artifact = read_artifact(served.new)
    first, *others = artifact.manifest.canaries
    off = first.model_copy(update={"scores": tuple(score + 0.2 for score in first.scores)})
    manifest = artifact.manifest.model_copy(update={"canaries": (off, *others)})
    write_artifact(folder, manifest, artifact.tensors)
    return folder


def require_attributed(
    running: Running, answers: Sequence[Answer], served: Served, wanted: Mapping[str, Mapping[Ids, float]], off: float
) -> None:
    """Every answer was judged by one guard that was whole: its own state's score, verdict, digest, and nothing else.

    `wanted`: by digest, what the guard reads of each prompt; `off` is how far a score may be from that.
    """
    assert verify([running.audit]).problems == []
    old, new = served.digests.values()
    readings = {each["answer"]: each for each in running.told("score")}
    assert len(readings) == len(running.told("score")), "one of every answer"
    records = [(each["kind"], each.get("digest")) for each in running.told("score", "abstention", "admin")]
    change = max(index for index, (kind, _) in enumerate(records) if kind == "admin")
    assert {digest for kind, digest in records[:change] if kind != "admin"} == {old}
    assert {digest for _, digest in records[change + 1 :]} == {new}
    withheld = {each["answer"]: each["digest"] for each in running.told("abstention")}
    fires_on = {old: TENS, new: FIFTIES}
    for each in answers:
        reading = readings[f"{each.id}-0"]
        assert reading["score"] == pytest.approx(wanted[reading["digest"]][each.ids], abs=off)
        refused = each.reason == "content_filter"
        assert refused == (each.skill == fires_on[reading["digest"]])
        assert withheld.get(f"{each.id}-0") == (reading["digest"] if refused else None)
        assert (each.text == "no") == refused, "nothing of a withheld answer went out"


async def fresh_scores(engine: Any, prompts: Sequence[Ids]) -> dict[Ids, float]:
    """What an engine that never had another guard reads, one prompt after another."""
    await engine.start()
    try:
        return {ids: (await engine.check(ids, f"fresh-{i}"))[0].score for i, ids in enumerate(prompts)}
    finally:
        await engine.stop()


@dataclass
class Swapped:
    """What came of it: every answer, and what was seen of the exchange."""

    answers: list[Answer]
    reply: httpx.Response
    running_at_offer: int
    """Answers that were being written when the reload was asked for."""
    running_at_exchange: int
    ready_at_exchange: tuple[int, str]
    waiting_at_exchange: int
    """Requests that had come and waited at the door."""


async def swap_under_load(running: Running, engine: Any, folder: Path) -> Swapped:
    """64 callers ask, one request after another, while the guard is reloaded from a folder."""
    seen: dict[str, Any] = {}
    busy, submitted = asyncio.Event(), 0
    submit, offer, install = engine.submit, engine.offer, engine._install
    begun = ended = 0

    def counted(request: Any) -> Any:
        nonlocal submitted
        submitted += 1
        if submitted == CALLERS + CALLERS // 2:  # all are in, and half of them a second time
            busy.set()
        return submit(request)

    async def offered(*arguments: Any) -> Any:
        seen.setdefault("offer", len(engine._streams))
        return await offer(*arguments)

    async def installed(guards: Any) -> None:
        ready = await running.client.get("/ready")
        seen.setdefault("exchange", (len(engine._streams), (ready.status_code, ready.json()["status"]), begun - ended))
        await install(guards)

    async def caller(number: int) -> list[Answer]:
        nonlocal begun, ended
        found = []
        for turn in range(ROUNDS):
            ids = PROMPTS[(number + turn * CALLERS) % len(PROMPTS)]
            begun += 1
            found.append(await running.ask(ids))
            ended += 1
        return found

    async def swap() -> httpx.Response:
        await busy.wait()
        return await running.reload(folder)

    patched = {"submit": counted, "offer": offered, "_install": installed}
    for name, stand_in in patched.items():
        setattr(engine, name, stand_in)
    try:
        asked = asyncio.gather(*map(caller, range(CALLERS)))
        reply, answers = await asyncio.gather(swap(), asked)
    finally:
        for name in patched:
            delattr(engine, name)
    at, ready, waiting = seen["exchange"]
    return Swapped([*chain.from_iterable(answers)], reply, seen["offer"], at, ready, waiting)
