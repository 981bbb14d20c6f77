"""Tool calls in streams: piece by piece, held back with their tokens, and dropped where a guard fires."""

from typing import Any

import pytest
from openai.types.chat import ChatCompletionChunk

from guards.core.verdict import Stage
from server.engines.events import Chunk, Finish, FinishReason, TokenLogprob
from server.engines.scripted.engine import ScriptedEngine
from server.engines.scripted.scripts import Script, Step, abstention, answer, guard, hit
from server.engines.scripted.tools import ScriptedToolParser
from server.engines.tools import Parsed, ToolCall
from tests.server.harness import CHAT, chat, serving
from tests.server.streams import ROLE, ROLE_THAT_MAY_REFUSE, choices_of, delta
from tests.server.test_tools import CALLS, TOOLS

pytestmark = pytest.mark.anyio

TEXT = "No cooking here."
LATE_HIT = hit(guard(), Stage.GENERATION)
PIECES = ("Look: ", "[[", "weather|", '{"city": ', '"Rome"}', "]]")


def engine(*steps: Step) -> ScriptedEngine:
    return ScriptedEngine([Script(steps)])


def begun(name: str, index: int = 0) -> dict[str, Any]:
    function = {"name": name, "arguments": ""}
    return delta(tool_calls=[{"index": index, "id": f"call_{index}", "type": "function", "function": function}])


def more(arguments: str, index: int = 0) -> dict[str, Any]:
    return delta(tool_calls=[{"index": index, "function": {"arguments": arguments}}])


def calls_of(choice: dict[str, Any]) -> list[object]:
    """The calls of one chunk's choice."""
    calls: list[object] = choice["delta"]["tool_calls"]
    return calls


SENT = [ROLE, delta(content="Look: "), begun("weather"), more('{"city": '), more('"Rome"}')]
"""What PIECES come to. The tokens that open and close a call send nothing."""
SENT_AFTER = [1, 2, 2, 3, 4, 5, 5]
"""How many of those are out after so many tokens."""


@pytest.mark.parametrize("hold_back", [0, 1, 3, 9])
async def test_call(hold_back: int) -> None:
    async with serving(engine(*answer(*PIECES)), hold_back_tokens=hold_back) as served:
        events = await served.stream(CHAT, chat(tools=TOOLS))
        for event in events[:-1]:
            ChatCompletionChunk.model_validate(event, strict=True)
        assert choices_of(events) == [*SENT, delta("tool_calls"), "[DONE]"]


async def test_several_calls_and_one_that_is_cut_short() -> None:
    pieces = ("[[clock|{}]][[clock|", '{"a": 1}]][[cl')
    async with serving(engine(*answer(*pieces, reason=FinishReason.LENGTH))) as served:
        events = choices_of(await served.stream(CHAT, chat(tools=TOOLS)))
        assert events == [
            ROLE,
            delta(tool_calls=[*calls_of(begun("clock")), *calls_of(more("{}")), *calls_of(begun("clock", 1))]),
            more('{"a": 1}', 1),
            delta(content="[[cl"),
            delta("length"),
            "[DONE]",
        ]


@pytest.mark.parametrize("tools", [None, [], TOOLS])
async def test_text_alone(tools: list[object] | None) -> None:
    async with serving(engine(*answer("Hel", "lo"))) as served:
        events = choices_of(await served.stream(CHAT, chat(tools=tools)))
        assert events == [ROLE, delta(content="Hel"), delta(content="lo"), delta("stop"), "[DONE]"]


async def test_without_tools_a_call_is_text() -> None:
    async with serving(engine(*answer("[[clock|{}]]"))) as served:
        for fields in {}, {"tools": TOOLS, "tool_choice": "none"}:
            events = choices_of(await served.stream(CHAT, chat(**fields)))
            assert events == [ROLE, delta(content="[[clock|{}]]"), delta("stop"), "[DONE]"]


@pytest.mark.parametrize("style", ["content_filter", "refusal"])
@pytest.mark.parametrize("hold_back", [0, 1, 2, 9])
@pytest.mark.parametrize("written", range(len(PIECES) + 1))
async def test_what_was_not_sent_at_a_hit_is_dropped(written: int, hold_back: int, style: str) -> None:
    """Before, in the middle of and after a call: no more comes out than the tokens that were let through say."""
    steps = abstention(LATE_HIT, *PIECES[:written])
    async with serving(engine(*steps), hold_back_tokens=hold_back, abstain_style=style, abstain_text=TEXT) as served:
        events = choices_of(await served.stream(CHAT, chat(tools=TOOLS)))
        sent = SENT[: SENT_AFTER[max(0, written - hold_back)]]
        separator = "\n\n" if len(sent) > 1 else ""
        refused = style == "refusal"
        assert events[: len(sent)] == [ROLE_THAT_MAY_REFUSE if refused else ROLE, *sent[1:]]
        assert events[len(sent)] == (delta(refusal=TEXT) if refused else delta(content=separator + TEXT))
        reason = {"content_filter": "content_filter", "refusal": "stop"}[style]
        assert [event["finish_reason"] for event in events[len(sent) + 1 : -1]] == [reason]
        assert events[-1] == "[DONE]"


async def test_what_the_parser_holds_is_dropped_at_a_hit() -> None:
    """Positive control: at an ordinary end it comes out."""
    for steps, sent in (abstention(LATE_HIT, "[[clo"), TEXT), (answer("[[clo"), "[[clo"):
        async with serving(engine(*steps), abstain_text=TEXT) as served:
            events = choices_of(await served.stream(CHAT, chat(tools=TOOLS)))
            assert [event["delta"].get("content") for event in events[1:-2]] == [sent]


@pytest.mark.parametrize("finish", [Finish(FinishReason.ERROR, 0, 1, verified=True, error="CUDA")])
async def test_error_in_the_middle_of_a_call(finish: Finish) -> None:
    async with serving(engine(Chunk("[[clock|{", 1), Chunk("}]][[clo", 1), finish), hold_back_tokens=1) as served:
        events = choices_of(await served.stream(CHAT, chat(tools=TOOLS)))
        assert [events[0], len(events), events[2]["error"]["code"]] == [ROLE, 3, "engine_error"]
        assert events[1]["delta"]["tool_calls"][1:] == [{"index": 0, "function": {"arguments": "{"}}]


async def test_each_choice_has_its_own_parser() -> None:
    async with serving(engine(*answer(*PIECES))) as served:
        events = choices_of(await served.stream(CHAT, chat(tools=TOOLS, n=2)))[:-1]
        for index in 0, 1:
            mine = [{**event, "index": 0} for event in events if event["index"] == index]
            assert mine == [*SENT, delta("tool_calls")]


async def test_logprobs_come_with_their_token() -> None:
    drawn = [(TokenLogprob(piece, piece.encode(), -0.5),) for piece in PIECES]
    steps = [Chunk(piece, 1, logprobs) for piece, logprobs in zip(PIECES, drawn, strict=True)]
    async with serving(engine(*steps, Finish(FinishReason.STOP, 0, 6, verified=True))) as served:
        events = choices_of(await served.stream(CHAT, chat(tools=TOOLS, logprobs=True)))
        tokens = [event["logprobs"]["content"][0]["token"] for event in events[1:-2]]
        assert tokens == list(PIECES)


@pytest.mark.parametrize("size", [1, 2, 3, 100])
@pytest.mark.parametrize(("text", "content", "calls"), CALLS)
def test_scripted_parser_reads_pieces_as_it_reads_the_whole(
    text: str, content: str | None, calls: list[dict[str, Any]], size: int
) -> None:
    expected = tuple(ToolCall(call["id"], **call["function"]) for call in calls)
    assert ScriptedToolParser().whole(text) == Parsed(content or "", expected)
    parser = ScriptedToolParser()
    pieces = [parser.push(text[at : at + size], (), final=False) for at in range(0, len(text), size)]
    pieces.append(parser.push("", (), final=True))
    assert "".join(piece.content for piece in pieces) == (content or "")
    for index, call in enumerate(expected):
        mine = [each for piece in pieces for each in piece.calls if each.index == index]
        assert [(each.id, each.name) for each in mine if each.id] == [(call.id, call.name)]
        assert "".join(each.arguments for each in mine) == call.arguments
