"""The Responses API, streamed: the events of every ending, and that they come to the response of a whole answer."""

from typing import Any

import pytest
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter

from guards.core.verdict import Stage
from server.engines.events import Chunk, Finish, FinishReason, TokenLogprob
from server.engines.scripted.engine import ScriptedEngine
from server.engines.scripted.scripts import Script, Step, abstention, answer, guard, hit
from tests.server.harness import RESPONSES, Served, responses, serving
from tests.server.test_responses import CLOCK, LOGPROBS, call, message, said, text

pytestmark = pytest.mark.anyio

TEXT = "No cooking here."
LATE_HIT = hit(guard(), Stage.GENERATION)
REFUSAL = {"type": "refusal", "refusal": TEXT}
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
BEGIN = ["response.created", "response.in_progress"]
MESSAGE = ["response.output_item.added", "response.content_part.added"]
TEXT_DONE = ["response.output_text.done", "response.content_part.done"]
DELTA, ITEM_DONE = "response.output_text.delta", "response.output_item.done"
CALL_BEGUN = ["response.output_item.added", "response.function_call_arguments.delta"]
CALL_DONE = ["response.function_call_arguments.done", ITEM_DONE]


def engine(*steps: Step) -> ScriptedEngine:
    return ScriptedEngine([Script(steps)])


async def events_of(served: Served, **fields: object) -> list[Any]:
    """Each in the shape that OpenAI's own types have, numbered, of one response, and without any that ends a stream
    of chat completions."""
    events = await served.stream(RESPONSES, responses(**fields))
    for event in events:
        EVENT.validate_python(event, strict=True)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert len({event["response"]["id"] for event in events if "response" in event}) == 1
    return events


def kinds(events: list[Any]) -> list[str]:
    return [event["type"] for event in events]


def put_together(events: list[Any]) -> list[Any]:
    """The output as a client makes it of the deltas."""
    items: list[Any] = []
    for event in events:
        match event["type"]:
            case "response.output_item.added":
                assert event["output_index"] == len(items)
                assert event["item"]["status"] == "in_progress"
                items.append(event["item"])
            case "response.content_part.added":
                assert event["content_index"] == len(items[-1]["content"])
                items[-1]["content"].append(event["part"])
            case "response.output_text.delta" | "response.refusal.delta":
                part = items[event["output_index"]]["content"][event["content_index"]]
                part["refusal" if part["type"] == "refusal" else "text"] += event["delta"]
                part.get("logprobs", []).extend(event.get("logprobs", []))
            case "response.content_part.done":
                assert event["part"] == items[-1]["content"][event["content_index"]]
            case "response.function_call_arguments.delta":
                items[-1]["arguments"] += event["delta"]
            case "response.function_call_arguments.done":
                assert event["arguments"] == items[-1]["arguments"]
            case "response.output_item.done":
                assert event["item"] | {"status": "in_progress"} == items[-1]
                items[-1] = event["item"]
        if "item_id" in event:
            assert event["item_id"] == items[event["output_index"]]["id"]
    return items


@pytest.mark.parametrize("hold_back", [0, 1, 9])
async def test_text(hold_back: int) -> None:
    async with serving(engine(*answer("Hel", "lo")), hold_back_tokens=hold_back) as served:
        events = await events_of(served)
        assert kinds(events) == [*BEGIN, *MESSAGE, DELTA, DELTA, *TEXT_DONE, ITEM_DONE, "response.completed"]
        assert [event["delta"] for event in events if event["type"] == DELTA] == ["Hel", "lo"]
        first, last = events[0]["response"], events[-1]["response"]
        assert (first["status"], first["output"], first["usage"]) == ("in_progress", [], None)
        assert last["output"] == put_together(events)
        whole = (await served.post(RESPONSES, responses())).json()
        assert said(whole) == said(last) == [message(text("Hello"))]
        unlike = {"id", "output", "created_at"}
        assert {k: v for k, v in whole.items() if k not in unlike} == {k: v for k, v in last.items() if k not in unlike}


async def test_no_text() -> None:
    async with serving(engine(*answer())) as served:
        events = await events_of(served)
        assert said(events[-1]["response"]) == [message(text(""))]
        assert put_together(events) == events[-1]["response"]["output"]


async def test_length() -> None:
    async with serving(engine(*answer("Hel", reason=FinishReason.LENGTH))) as served:
        events = await events_of(served)
        assert kinds(events)[-2:] == [ITEM_DONE, "response.incomplete"]
        assert events[-1]["response"]["incomplete_details"] == {"reason": "max_output_tokens"}
        assert said(events[-1]["response"]) == [message(text("Hel"), status="incomplete")]


PIECES = ("Look: ", "[[", "clock|", '{"a": ', "1}", "]]")


async def test_calls() -> None:
    async with serving(engine(*answer(*PIECES, "[[clock|{}]]"))) as served:
        events = await events_of(served, tools=[CLOCK])
        assert kinds(events) == [
            *BEGIN,
            *(*MESSAGE, DELTA, *TEXT_DONE, ITEM_DONE),
            *(*CALL_BEGUN, "response.function_call_arguments.delta", *CALL_DONE),
            *(*CALL_BEGUN, *CALL_DONE),
            "response.completed",
        ]
        last = events[-1]["response"]
        assert last["output"] == put_together(events)
        whole = (await served.post(RESPONSES, responses(tools=[CLOCK]))).json()
        calls = [call("clock", '{"a": 1}', "call_0"), call("clock", "{}", "call_1")]
        assert said(whole) == said(last) == [message(text("Look: ")), *calls]


async def test_call_that_the_limit_cuts_short() -> None:
    async with serving(engine(*answer(*PIECES[:4], reason=FinishReason.LENGTH))) as served:
        events = await events_of(served, tools=[CLOCK])
        assert kinds(events)[-3:] == ["response.function_call_arguments.delta", ITEM_DONE, "response.incomplete"]
        assert said(events[-1]["response"])[1] == call("clock", '{"a": ', "call_0", "incomplete")


async def test_text_behind_a_call_is_a_message_of_its_own() -> None:
    async with serving(engine(*answer("[[clock|{}]]", "So."))) as served:
        events = await events_of(served, tools=[CLOCK])
        assert said(events[-1]["response"]) == [call("clock", "{}", "call_0"), message(text("So."))]
        assert put_together(events) == events[-1]["response"]["output"]


@pytest.mark.parametrize("hold_back", [0, 1, 9])
async def test_hit_while_writing(hold_back: int) -> None:
    """What was not sent is dropped; the operator's text comes once."""
    sent = "Take eggs"[: {0: 9, 1: 4, 9: 0}[hold_back]]
    steps = abstention(LATE_HIT, "Take", " eggs")
    async with serving(engine(*steps), hold_back_tokens=hold_back, abstain_text=TEXT) as served:
        events = await events_of(served)
        assert events[-1]["type"] == "response.incomplete"
        response = events[-1]["response"]
        assert response["incomplete_details"] == {"reason": "content_filter"}
        separated = f"{sent}\n\n{TEXT}" if sent else TEXT
        assert said(response) == [message(text(separated), status="incomplete")]
        assert response["output"] == put_together(events)
        assert response["guard"]["stage"] == "generation"
    style: dict[str, Any] = {"abstain_style": "refusal", "abstain_text": TEXT}
    async with serving(engine(*steps), hold_back_tokens=hold_back, **style) as served:
        events = await events_of(served)
        assert events[-1]["type"] == "response.completed"
        refused = ["response.content_part.added", "response.refusal.delta", "response.refusal.done"]
        assert kinds(events)[-6:-1] == [*refused, "response.content_part.done", ITEM_DONE]
        assert said(events[-1]["response"]) == [message(*([text(sent)] if sent else []), REFUSAL)]
        assert events[-1]["response"]["output"] == put_together(events)


@pytest.mark.parametrize("style", ["content_filter", "refusal"])
@pytest.mark.parametrize("written", range(len(PIECES) + 1))
@pytest.mark.parametrize("hold_back", [0, 2])
async def test_hit_in_a_call(written: int, hold_back: int, style: str) -> None:
    """The response that ends the stream holds no call, and a call that was cut is never said to be done."""
    steps = abstention(LATE_HIT, *PIECES[:written])
    async with serving(engine(*steps), hold_back_tokens=hold_back, abstain_style=style, abstain_text=TEXT) as served:
        events = await events_of(served, tools=[CLOCK])
        last = events[-1]["response"]
        assert all(item["type"] == "message" for item in last["output"])
        assert str(said(last)).count(TEXT) == 1
        assert "response.function_call_arguments.done" not in kinds(events)
        calls = [item for item in put_together(events) if item["type"] == "function_call"]
        assert [item["status"] for item in calls] == ["incomplete"] * (written - hold_back > 2)


async def test_hit_at_the_prompt() -> None:
    async with serving(engine(*abstention(hit(guard()))), abstain_text=TEXT) as served:
        events = await events_of(served)
        assert kinds(events) == [*BEGIN, *MESSAGE, DELTA, *TEXT_DONE, ITEM_DONE, "response.incomplete"]
    async with serving(engine(*abstention(hit(guard()))), abstain_style="error") as served:
        error = await served.error(RESPONSES, responses(stream=True))
        assert (error["status"], error["code"]) == (400, "skill_abstained")


FAILED = Finish(FinishReason.ERROR, 0, 1, verified=True, error="CUDA")
UNVERIFIED = Finish(FinishReason.STOP, 0, 1, verified=False)
WITHHELD = abstention(LATE_HIT)[-1]


@pytest.mark.parametrize(
    ("finish", "code", "says"),
    [
        (FAILED, "server_error", "Quote request id"),
        (UNVERIFIED, "server_error", "Quote request id"),
        (WITHHELD, "invalid_prompt", "this server withholds"),
    ],
)
async def test_error_after_the_first_byte(finish: Step, code: str, says: str) -> None:
    steps = (Chunk("Take [[clock|{", 1), Chunk(" eggs", 1), finish)
    async with serving(engine(*steps), hold_back_tokens=1, abstain_style="error") as served:
        events = await events_of(served, tools=[CLOCK])
        assert (kinds(events)[:2], kinds(events)[-1]) == (BEGIN, "response.failed")
        response = events[-1]["response"]
        assert (response["status"], response["error"]["code"]) == ("failed", code)
        assert says in response["error"]["message"]
        assert said(response) == [message(text("Take "))]
        assert ("guard" in response) == (finish is WITHHELD)
        assert "CUDA" not in str(events)
        assert "eggs" not in str(events)


@pytest.mark.parametrize(("finish", "code"), [(FAILED, "engine_error"), (UNVERIFIED, "guard_error")])
async def test_error_before_the_first_byte_has_its_status(finish: Finish, code: str) -> None:
    async with serving(engine(finish)) as served:
        error = await served.error(RESPONSES, responses(stream=True))
        assert (error["status"], error["code"]) == (500, code)


async def test_logprobs_come_with_their_text() -> None:
    drawn = [TokenLogprob(token, token.encode(), -0.5) for token in ("Hm", "", "[[", "clock|{}]]")]
    steps = [Chunk(each.token, 1, (each,)) for each in drawn]
    async with serving(engine(*steps, Finish(FinishReason.STOP, 0, 4, verified=True))) as served:
        events = await events_of(served, tools=[CLOCK], include=[LOGPROBS])
        assert put_together(events) == events[-1]["response"]["output"]
        tokens = [each["token"] for each in events[-1]["response"]["output"][0]["content"][0]["logprobs"]]
        assert tokens[:2] == ["Hm", ""]
        assert len(events[-1]["response"]["output"]) == 2
