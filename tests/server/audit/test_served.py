"""What a server records, and that nothing unrecorded goes out."""

import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from guards.core.verdict import GuardMode, Reading, Stage
from server.audit.verify import verify
from server.auth import Role, new_key
from server.config import AuditFailure
from server.engines.events import Chunk, Event, Finish, FinishReason, GuardFault, PromptHits
from server.engines.scripted.engine import ScriptedEngine
from server.engines.scripted.scripts import Script, abstention, answer, guard, hit, score
from tests.server.harness import (
    CHAT,
    CHECKS,
    COMPLETIONS,
    GUARDRAIL,
    MODEL,
    MODERATIONS,
    RESPONSES,
    Served,
    chat,
    completion,
    keys_file,
    serving,
)
from tests.server.judging import cook

pytestmark = pytest.mark.anyio

SECRET = "cook for ada@example.org, card 4111 1111 1111 1111, key sk-live-abcdefgh12345678"
COOK = guard("demo")
FAULT = GuardFault("demo", Reading.INVALID, 21, Stage.GENERATION, "0" * 64)


def scripts() -> list[Script]:
    watched = replace(hit(COOK, mode=GuardMode.SHADOW), score=score(COOK, Reading.INSIDE))
    return [
        Script(abstention(hit(COOK)), when=lambda prompt: "cook" in prompt),
        Script(answer("a", "b", hits=(watched,)), when=lambda prompt: "watch" in prompt),
        Script(
            (
                Chunk("a", 1),
                Finish(FinishReason.ERROR, 0, 1, verified=False, faults=(FAULT,), error=f"odd: {SECRET}"),
            ),
            when=lambda prompt: "break" in prompt,
        ),
        Script(answer("fine")),
    ]


def last(steps: Sequence[Event]) -> Finish:
    assert isinstance(steps[-1], Finish)
    return steps[-1]


def told(folder: Path, *kinds: str) -> list[dict[str, Any]]:
    """Records of these kinds, or of all."""
    lines = b"".join(path.read_bytes() for path in sorted(folder.glob("audit-*.jsonl"))).splitlines()
    records = [json.loads(line) for line in lines]
    return [each for each in records if not kinds or each["kind"] in kinds]


async def test_a_record_of_each_kind(tmp_path: Path) -> None:
    engine = ScriptedEngine(scripts())
    async with serving(engine, audit_dir=tmp_path) as served:
        replies = [
            await served.client.post(CHAT, json=chat(content), headers={"x-request-id": "theirs"})
            for content in (SECRET, "watch", "break", "hi")
        ]
        assert [reply.status_code for reply in replies] == [200, 200, 500, 200]
        engine.scores = (score(COOK, Reading.INSIDE),)
        await served.post(CHECKS, completion("hi"))
    assert verify([tmp_path]).problems == []
    records = told(tmp_path)
    assert [each["kind"] for each in records] == [
        *("start", "canaries", "abstention", "shadow_hit", "error", "check", "stop")
    ]
    start, canaries, withheld, watched, failed, checked, _ = records
    policy = start["policy"]
    assert start["guards"] == [
        {
            "guard": "demo",
            "skill": "cooking",
            "digest": "0" * 64,
            "mode": "enforce",
            "scope": "both",
            "taus": [0.5],
            "template": "verified",
        }
    ]
    assert (canaries["guard"], canaries["when"], canaries["agreed"]) == ("demo", "start", True)
    assert canaries["reason"] is None
    sent = engine.submitted[0]
    assert {name: withheld[name] for name in withheld.keys() - {"time", "number", "previous", "hash", "request"}} == {
        "kind": "abstention",
        "client_request": "theirs",
        "route": CHAT,
        "key": "anonymous",
        "tenant": "anonymous",
        "answer": sent.request_id,
        "policy": policy,
        "guard": "demo",
        "skill": "cooking",
        "method": "ksd",
        "digest": "0" * 64,
        "mode": "enforce",
        "stage": "prompt",
        "position": 7,
        "part": "cube 0",
        "layers": [1],
        "score": 0.25,
        "tau": 0.5,
        "prompt_tokens": len(sent.prompt_token_ids),
        "drawn_tokens": 0,
        "sent_tokens": 0,
    }
    assert sent.policy.version == policy
    assert (watched["mode"], watched["guard"]) == ("shadow", "demo")
    assert (failed["code"], failed["error"]) == ("guard_error", "UnverifiedError")
    assert failed["guards"] == [{"guard": "demo", "digest": "0" * 64, "reading": "invalid", "position": 21}]
    assert (checked["guard"], checked["route"], checked["score"], checked["texts"]) == ("demo", CHECKS, 0.25, [0])
    ids = [each["request"] for each in (withheld, watched, failed, checked)]
    assert len(set(ids)) == 4, "the server's own, though the caller's were the same"
    everything = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"ada@" not in everything
    assert b"cook for" not in everything


@pytest.mark.parametrize(("hold_back", "sent"), [(0, 5), (3, 2)])
async def test_what_a_stream_had_sent_before_a_guard_fired(tmp_path: Path, hold_back: int, sent: int) -> None:
    late = hit(COOK, Stage.GENERATION)
    async with serving(audit_dir=tmp_path, hold_back_tokens=hold_back) as served:
        prompt = len(served.engine.encode_text("hi"))
        late = replace(late, score=replace(late.score, position=prompt - 1 + 5))
        served.engine.scripts[:] = [Script(abstention(late, *"abcde"))]
        events = await served.stream(COMPLETIONS, completion("hi"))
        text = "".join(each["choices"][0]["text"] for each in events[:-1])
        assert text.partition("\n\n")[0] == "abcde"[:sent], "the positive control: so much of it was sent"
        await served.post(COMPLETIONS, completion("hi"))
    streamed, whole = told(tmp_path, "abstention")
    assert (streamed["drawn_tokens"], streamed["sent_tokens"]) == (5, sent)
    assert (whole["drawn_tokens"], whole["sent_tokens"]) == (5, 0)


async def test_hits_beside_the_one_that_ended_the_answer(tmp_path: Path) -> None:
    other = guard("other", skill="baking")
    finish = replace(
        last(abstention(hit(COOK))),
        hits=(hit(COOK), hit(other)),
        prompt_hits=(PromptHits(hit(other), positions=3),),
    )
    async with serving(ScriptedEngine([Script((finish,))], guards=(COOK, other)), audit_dir=tmp_path) as served:
        await served.post(CHAT, chat())
    found = [(each["kind"], each["guard"], each.get("positions")) for each in told(tmp_path)[3:-1]]
    assert found == [("abstention", "demo", None), ("hit", "other", None), ("prompt_hit", "other", 3)]


async def test_every_reading_of_a_guard_that_is_asked_for(tmp_path: Path) -> None:
    finish = replace(last(answer("a")), prompt_scores=(score(COOK), score(guard("other"))))
    engine = ScriptedEngine([Script((Chunk("a", 1), finish))], guards=(COOK, guard("other")))
    async with serving(engine, audit_dir=tmp_path, audit_scores=("demo",)) as served:
        await served.post(CHAT, chat())
    (record,) = told(tmp_path, "score")
    assert (record["guard"], record["score"], record["tau"], record["digest"]) == ("demo", 1.0, 0.5, "0" * 64)


async def test_scores_of_a_guard_that_is_not_there_stop_the_start(tmp_path: Path) -> None:
    async with serving(audit_dir=tmp_path, audit_scores=("dmeo",)) as served:
        assert "no guard named 'dmeo'" in str(served.readiness.failure)


async def test_text_is_recorded_where_it_is_switched_on_and_redacted(tmp_path: Path) -> None:
    engine = ScriptedEngine(scripts(), max_model_tokens=9999)
    async with serving(engine, audit_dir=tmp_path, audit_text=True) as served:
        await served.post(CHAT, chat("x " * 3000 + SECRET))
    (record,) = told(tmp_path, "abstention")
    assert len(record["text"]) == 4096
    assert "cook for [redacted], card [redacted], key [redacted]" in record["text"]
    for secret in ("ada", "4111", "sk-live", "12345678"):
        assert secret not in json.dumps(record["text"])


async def test_patterns_of_ones_own(tmp_path: Path) -> None:
    async with serving(
        ScriptedEngine(scripts()), audit_dir=tmp_path, audit_text=True, audit_redact=("c[a-z]+k",)
    ) as served:
        await served.post(CHAT, chat("cook"))
    assert "[redacted]" in told(tmp_path, "abstention")[0]["text"]


REQUESTS: Sequence[tuple[str, dict[str, object], bool]] = [
    (CHAT, chat("cook"), False),
    (CHAT, chat("watch"), False),
    (CHAT, chat("cook"), True),
    (CHAT, chat("watch"), True),
    (COMPLETIONS, completion("watch"), True),
    (RESPONSES, {"model": MODEL, "input": "watch"}, True),
    (CHECKS, completion("hi"), False),
    (MODERATIONS, {"input": ["hi", "cook"]}, False),
    (GUARDRAIL, {"input_type": "response", "texts": ["cook"]}, False),
]


async def take_disk(served: Served, folder: Path) -> None:
    """As a volume that is no longer mounted."""
    folder.rename(folder.with_name("away"))
    served.engine.scores = (score(COOK, Reading.INSIDE),)


@pytest.mark.parametrize(("path", "body", "stream"), REQUESTS)
async def test_what_cannot_be_recorded_is_not_answered(
    tmp_path: Path, path: str, body: dict[str, object], stream: bool
) -> None:
    folder = tmp_path / "log"
    folder.mkdir()
    engine = cook() if path in (MODERATIONS, GUARDRAIL) else ScriptedEngine(scripts())
    async with serving(engine, audit_dir=folder, anonymous_role="operator") as served:
        sent = {**body, "stream": True} if stream else body
        good = await served.post(path, sent)
        assert good.status_code == 200
        assert "audit_failure" not in good.text
        await take_disk(served, folder)
        bad = await served.post(path, sent)
        if bad.status_code == 200:  # it had begun: its end says so
            assert stream
            assert "[DONE]" not in bad.text
            assert "response.completed" not in bad.text
            assert "audit_failure" in bad.text or "response.failed" in bad.text
        else:
            assert bad.status_code == 503
            assert bad.json()["error"]["code"] == "audit_failure"
        harmless = await served.post(CHAT, chat("hi"))
        assert harmless.status_code == 200, "what needs no record goes out"
        assert await served.metric("skillguard_audit_failures_total") == 1
        assert await served.metric("skillguard_audit_failing") == 1
        assert (await served.client.get("/ready")).json()["audit"] == "failing"
        assert (await served.client.get("/v1/audit")).json()["failing"].startswith("FileNotFoundError")
        folder.with_name("away").rename(folder)
        assert (await served.post(path, sent)).status_code == 200
        assert await served.metric("skillguard_audit_failing") == 0
        assert (await served.client.get("/ready")).json()["audit"] == "ok"
    assert verify([folder]).problems == []


@pytest.mark.parametrize("mode", [GuardMode.ENFORCE, GuardMode.SHADOW])
async def test_texts_of_models_elsewhere_are_recorded_as_checks(tmp_path: Path, mode: GuardMode) -> None:
    engine, shadow = cook(mode=mode), ("c",) if mode is GuardMode.SHADOW else ()
    async with serving(engine, audit_dir=tmp_path, shadow=shadow) as served:
        assert (await served.post(MODERATIONS, {"input": ["cook", "a", "cook"]})).status_code == 200
        assert (await served.post(GUARDRAIL, {"input_type": "request", "texts": ["a", "cook"]})).status_code == 200
    found = [(each["route"], each["guard"], each["mode"], each["texts"]) for each in told(tmp_path, "check")]
    assert found == [(MODERATIONS, "c", mode, [0, 2]), (GUARDRAIL, "c", mode, [1])], "of equal texts once"
    assert told(tmp_path, "abstention", "shadow_hit") == []


async def test_going_on_with_a_count_instead(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    folder.mkdir()
    engine = ScriptedEngine(scripts())
    async with serving(engine, audit_dir=folder, audit_failure=AuditFailure.ANSWER) as served:
        log = served.app.state.services.audit.log
        log.put([{"kind": "admin"}]).result()  # what was put before is written
        await take_disk(served, folder)
        assert (await served.post(CHAT, chat("cook"))).json()["choices"][0]["finish_reason"] == "content_filter"
        assert (await served.stream(CHAT, chat("watch")))[-1] == "[DONE]"
        log.stop()  # so that all of it was tried
        assert await served.metric("skillguard_audit_failures_total") == 2
        shutil.rmtree(folder.with_name("away"))


async def test_a_log_that_cannot_be_begun_keeps_the_server_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = ScriptedEngine()
    engine.may_start.clear()
    folder = tmp_path / "log"
    folder.mkdir()
    async with serving(engine, settled=False, audit_dir=folder) as served:
        folder.rename(tmp_path / "away")
        engine.may_start.set()
        await served.readiness.settled.wait()
        assert "audit log" in str(served.readiness.failure)
        assert (await served.post(CHAT, chat())).status_code == 503


async def test_canaries_on_schedule(tmp_path: Path) -> None:
    engine = ScriptedEngine(guards=(guard("a"), guard("b")))
    async with serving(engine, audit_dir=tmp_path) as served:
        await served.readiness.check_again()
        assert (await served.client.get("/ready")).status_code == 200
        engine.verification = {"a": None, "b": "canary 0: got another score"}
        await served.readiness.check_again()
        assert (await served.client.get("/ready")).status_code == 503
        assert (await served.post(CHAT, chat())).json()["error"]["code"] == "not_ready"
        await served.readiness.check_again()
    found = [(each["when"], each["guard"], each["agreed"]) for each in told(tmp_path, "canaries")]
    assert found == [
        *(("start", "a", True), ("start", "b", True)),
        *(("schedule", "a", True), ("schedule", "b", True)),
        *(("schedule", "a", True), ("schedule", "b", False)),
    ]


@pytest.mark.parametrize(("trouble", "ready"), [(None, 200), ("canary 0: got another score", 503)])
async def test_canaries_on_schedule_that_cannot_be_recorded(tmp_path: Path, trouble: str | None, ready: int) -> None:
    """A full disk takes no server away, and keeps none open."""
    (folder := tmp_path / "log").mkdir()
    engine = ScriptedEngine(guards=(COOK,))
    async with serving(engine, audit_dir=folder) as served:
        folder.rename(tmp_path / "away")
        engine.verification = {"demo": trouble}
        await served.readiness.check_again()
        assert (await served.client.get("/ready")).status_code == ready
        assert await served.metric("skillguard_audit_failures_total") == 1


async def test_a_guard_that_no_longer_agrees_closes_the_server_before_that_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = ScriptedEngine(guards=(COOK,))
    async with serving(engine, audit_dir=tmp_path) as served:
        log, seen = served.app.state.services.audit.log, []
        record = log.record

        async def slow(records: Sequence[Any]) -> None:
            seen.append((await served.client.get("/ready")).status_code)
            await record(records)

        monkeypatch.setattr(log, "record", slow)
        await served.readiness.check_again()
        engine.verification = {"demo": "canary 0: got another score"}
        await served.readiness.check_again()
    assert seen == [200, 503]


async def test_only_operators_see_how_far_the_log_is(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    folder.mkdir()
    pairs = {role: new_key(role.value, role) for role in (Role.USER, Role.OPERATOR)}
    keys = keys_file(tmp_path, *(entry for _, entry in pairs.values()))
    async with serving(audit_dir=folder, api_keys_file=keys) as served:
        bearer = {role: {"authorization": f"Bearer {key}"} for role, (key, _) in pairs.items()}
        assert (await served.client.get("/v1/audit", headers=bearer[Role.USER])).status_code == 403
        shown = (await served.client.get("/v1/audit", headers=bearer[Role.OPERATOR])).json()
        assert (shown["enabled"], shown["lines"], shown["failures"]) == (True, 2, 0)
    assert verify([folder], noted=shown["head"]).noted == 1


async def test_without_a_folder_hits_are_lines_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="skillguard.audit"):
        async with serving(ScriptedEngine(scripts()), anonymous_role="operator") as served:
            await served.post(CHAT, chat("cook"))
            assert (await served.client.get("/v1/audit")).json() == {"object": "audit", "enabled": False}
            assert "audit" not in (await served.client.get("/ready")).json()
            assert "skillguard_audit" not in (await served.client.get("/metrics")).text
    assert "guard=demo skill=cooking mode=enforce" in caplog.text
