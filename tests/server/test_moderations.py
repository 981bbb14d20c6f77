"""OpenAI's moderation of texts that are not continued here."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from openai.types import ModerationCreateResponse

from guards.artifact.manifest import ScoreQuantiles
from guards.core.quantiles import LEVELS
from guards.core.verdict import GuardKind, GuardMode, Scope
from server.auth import Role, new_key
from server.engines.base import GuardInfo
from server.engines.errors import EngineBusyError
from server.engines.scripted.scripts import guard, score
from server.openai.moderation import MAX_TEXTS, nearness
from tests.server.harness import GUARDRAIL, MODERATIONS, Exchange, Served, keys_file, serving
from tests.server.judging import COOKING, PYTHON, cook, read

pytestmark = pytest.mark.anyio


async def flags(served: Served, said: object) -> list[bool]:
    response = await served.post(MODERATIONS, {"input": said})
    assert response.status_code == 200, response.text
    return [each["flagged"] for each in response.json()["results"]]


async def test_result_of_a_text() -> None:
    async with serving(cook(), anonymous_role="operator") as served:
        answer = (await served.post(MODERATIONS, {"input": "how to cook", "model": "scripted"})).json()
        assert answer.pop("id").startswith("modr-")
        kinds = {"skill/cooking": "threshold", "skill/python": "threshold"}
        assert answer == {
            "model": "scripted",
            "results": [
                {
                    "flagged": True,
                    "categories": {"skill/cooking": True, "skill/python": False},
                    "category_scores": {"skill/cooking": 0.5 / 0.75, "skill/python": 0.5 / 1.5},
                    "category_applied_input_types": {"skill/cooking": ["text"], "skill/python": ["text"]},
                    "category_score_kinds": kinds,
                }
            ],
        }
        (request,) = served.engine.submitted
        assert request.sampling.max_tokens == 1, "one forward pass, and no answer"
        parsed = ModerationCreateResponse.construct(**answer)
        assert parsed.results


async def test_inputs() -> None:
    async with serving(cook()) as served:
        assert await flags(served, "a") == [False]
        assert await flags(served, ["a", "cook", "a", "b"]) == [False, True, False, False]
        part = {"type": "text", "text": "co"}
        assert await flags(served, [part, {"type": "text", "text": "ok"}]) == [False], "parts are a line each"
        assert await flags(served, [part, {"type": "text", "text": "cook"}]) == [True], "and one text"
        assert read(served.engine) == ["a", "a", "cook", "b", "co\nok", "co\ncook"], "an equal text is judged once"


@pytest.mark.parametrize(
    ("said", "says"),
    [
        ([], "not empty"),
        (None, "got null"),
        (5, "got 5"),
        (["a", 5], "list of 2"),
        ([{"type": "image_url", "image_url": {"url": "data:"}}], "parts of the type 'text'"),
        ([{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "data:"}}], "type 'text'"),
        ([{"type": "text", "text": "a", "image_url": "b"}], "type 'text'"),
        ([["a"]], "list of 1"),
        (["a"] * (MAX_TEXTS + 1), f"at most {MAX_TEXTS} items"),
    ],
)
async def test_input_that_cannot_be_judged_is_refused(said: object, says: str) -> None:
    async with serving(cook()) as served:
        error = await served.error(MODERATIONS, {"input": said})
        assert (error["status"], error["param"]) == (400, "input")
        assert says in error["message"]
        assert served.engine.submitted == []


async def test_other_fields_are_refused() -> None:
    async with serving(cook()) as served:
        assert (await served.error(MODERATIONS, {"input": "a", "n": 2}))["param"] == "n"
        missing = await served.error(MODERATIONS, {"input": "a", "model": "omni-moderation-latest"})
        assert (missing["status"], missing["code"]) == (404, "model_not_found")


async def test_users_are_told_verdicts_only() -> None:
    async with serving(cook(calibrated(COOKING, PYTHON))) as served:
        (result,) = (await served.post(MODERATIONS, {"input": "cook"})).json()["results"]
        assert result["category_scores"] == {"skill/cooking": 1.0, "skill/python": 0.0}
        assert result["category_score_kinds"] == {"skill/cooking": "verdict", "skill/python": "verdict"}


async def test_a_guard_that_only_watches_does_not_flag_and_is_counted() -> None:
    async with serving(cook(mode=GuardMode.SHADOW), shadow=("c",)) as served:
        assert await flags(served, ["cook", "a"]) == [False, False]
        labels = '{method="ksd",skill="cooking",stage="prompt"}'
        assert await served.metric(f"skillguard_shadow_hits_total{labels}") == 1
        assert await served.metric(f"skillguard_abstentions_total{labels}") == 0


async def test_texts_are_counted_like_answers() -> None:
    async with serving(cook()) as served:
        assert await flags(served, ["cook", "ab"]) == [True, False]
        labels = '{method="ksd",skill="cooking",stage="prompt"}'
        assert await served.metric(f"skillguard_abstentions_total{labels}") == 1
        assert await served.metric("skillguard_verified_requests_total") == 2
        assert await served.metric("skillguard_prompt_tokens_total") == 6


async def test_several_guards_of_a_skill_are_one_category() -> None:
    other, shifts = guard("c2", skill="cooking"), guard("n", skill="knots", kind=GuardKind.INTERVENTION)
    for guards in ((COOKING, other, shifts), (other, shifts, COOKING)):
        async with serving(cook(guards), anonymous_role="operator") as served:
            (result,) = (await served.post(MODERATIONS, {"input": "cook"})).json()["results"]
            assert result["categories"] == {"skill/cooking": True}
            assert result["category_scores"] == {"skill/cooking": 0.5 / 0.75}, "the one nearest to firing"


def calibrated(*guards: GuardInfo) -> tuple[GuardInfo, ...]:
    """With a table in which the share of a level has the level's ten times over tau."""
    table = ScoreQuantiles(examples=9999, over_tau=tuple(10 * level for level in LEVELS))
    return tuple(replace(each, parts=(score(each).part,), quantiles=table) for each in guards)


async def test_a_score_is_a_quantile_where_every_guard_of_the_skill_has_a_table() -> None:
    """COOKING reads a half of its tau, PYTHON twice its tau; a stricter tenant's taus move nothing."""
    bare = guard("c2", skill="cooking")
    for guards, kind, number in (
        (calibrated(COOKING, PYTHON), "quantile", 0.95),
        ((*calibrated(COOKING, PYTHON), bare), "threshold", 0.5 / 0.75),
        ((bare, *calibrated(COOKING, PYTHON)), "threshold", 0.5 / 0.75),
        ((*calibrated(COOKING, PYTHON), *calibrated(bare)), "quantile", 0.95),
    ):
        async with serving(cook(guards), anonymous_role="operator") as served:
            (result,) = (await served.post(MODERATIONS, {"input": "cook"})).json()["results"]
            assert result["category_score_kinds"] == {"skill/cooking": kind, "skill/python": "quantile"}
            assert result["category_scores"] == pytest.approx({"skill/cooking": number, "skill/python": 0.8})


async def test_a_guard_that_is_off_for_a_tenant_flags_nothing_and_is_not_recorded(tmp_path: Path) -> None:
    (folder := tmp_path / "log").mkdir()
    key, entry = new_key("ann", Role.USER)
    keys = keys_file(tmp_path, entry, guards={"c": {"mode": "off"}})
    async with serving(cook(), api_keys_file=keys, audit_dir=folder) as served:
        answer = await served.post(MODERATIONS, {"input": "cook"}, authorization=f"Bearer {key}")
        assert answer.json()["results"][0]["flagged"] is False
    assert b'"kind":"check"' not in next(folder.glob("*.jsonl")).read_bytes()


@pytest.mark.parametrize("path", [MODERATIONS, GUARDRAIL])
async def test_texts_take_of_the_tokens_of_a_minute(path: str, tmp_path: Path) -> None:
    """Three texts of five tokens are within ten until they are read; the next is not."""
    key, entry = new_key("ann", Role.USER)
    keys = keys_file(tmp_path, entry, tokens_per_minute=10)
    texts = ["aaaaa", "bbbbb", "ccccc"]
    body = {"input": texts} if path == MODERATIONS else {"input_type": "request", "texts": texts}
    async with serving(cook(), api_keys_file=keys) as served:
        sent = [(await served.post(path, body, authorization=f"Bearer {key}")).status_code for _ in range(2)]
        assert sent == [200, 429]
        assert len(served.engine.submitted) == 3


@pytest.mark.parametrize("said", ["break", ["a", "break", "b"], "silent", ["silent", "cook"]])
async def test_a_text_without_a_reading_of_every_guard_is_an_error(said: object) -> None:
    async with serving(cook()) as served:
        error = await served.error(MODERATIONS, {"input": said})
        assert (error["status"], error["code"]) == (500, "guard_error")
        assert await served.metric("skillguard_unverified_requests_total") == ("break" in str(said))


@pytest.mark.parametrize(("scope", "sees"), [(Scope.BOTH, True), (Scope.PROMPT, True), (Scope.GENERATION, False)])
async def test_a_guard_that_judges_answers_only_passes_no_text(scope: Scope, sees: bool) -> None:
    of = replace(COOKING, rule=replace(COOKING.rule, scope=scope))
    body = {"input_type": "request", "texts": ["cook"]}
    async with serving(cook((of, PYTHON))) as served:
        for path, asked in ((MODERATIONS, {"input": "cook"}), (GUARDRAIL, body)):
            answer = await served.post(path, asked)
            if sees:
                assert (answer.status_code, "true" in answer.text or "BLOCKED" in answer.text) == (200, True)
            else:
                assert (answer.status_code, answer.json()["error"]["code"]) == (500, "guard_error")
    async with serving(cook((of, PYTHON), mode=GuardMode.SHADOW), shadow=("c",)) as served:
        assert (await served.post(GUARDRAIL, body)).json() == {"action": "NONE"}, "it would only watch"


async def test_a_text_that_does_not_fit_is_an_error_and_no_fault_of_a_guard() -> None:
    async with serving(cook(max_model_tokens=8)) as served:
        assert await flags(served, "a" * 7) == [False]
        error = await served.error(MODERATIONS, {"input": ["a", "a" * 8]})
        assert (error["status"], error["code"]) == (400, "context_length_exceeded")
        assert await served.metric("skillguard_unverified_requests_total") == 0


async def test_a_full_queue_is_an_error() -> None:
    async with serving(cook()) as served:
        served.engine.refusal = EngineBusyError("the queue is full")
        error = await served.error(MODERATIONS, {"input": "a"})
        assert (error["status"], error["code"]) == (429, "engine_busy")


async def test_texts_of_one_request_do_not_fill_the_queue() -> None:
    """Two at a time, by --max-answers."""
    gate = asyncio.Event()
    async with serving(cook(gate=gate), max_answers=2) as served:
        asked = asyncio.create_task(flags(served, [f"text {index}" for index in range(9)]))
        while len(served.engine.submitted) < 2:
            await asyncio.sleep(0)
        for _ in range(100):
            await asyncio.sleep(0)
        assert len(served.engine.submitted) == 2
        gate.set()
        assert await asked == [False] * 9
        assert len(served.engine.submitted) == 9


async def test_a_caller_who_hangs_up_cancels_what_is_judged() -> None:
    engine = cook(gate=asyncio.Event())
    async with serving(engine, max_answers=2) as served:
        exchange = Exchange.of(served.app, MODERATIONS, {"input": ["a", "b", "c"]})
        asked = asyncio.create_task(exchange.run())
        while len(engine.submitted) < 2:
            await asyncio.sleep(0)
        exchange.hang_up.set()
        await asked
        assert sorted(engine.cancelled) == sorted(request.request_id for request in engine.submitted)
        assert len(engine.submitted) == 2


def test_number_of_a_score() -> None:
    of = score(COOKING)
    numbers = [nearness(replace(of, score=each)) for each in (-3.0, 0.0, 0.25, 0.5, 0.6, 50.0)]
    assert numbers == sorted(numbers, reverse=True)
    assert numbers[0] == numbers[1] == 1
    assert numbers[3] == 0.5, "at the threshold, where it fires"
    assert 0 < numbers[-1] < 0.01
