"""Streams, compared event by event."""

import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletionChunk

from server.engines.events import Chunk, Finish, FinishReason, TokenLogprob
from server.engines.scripted.engine import ScriptedEngine
from server.engines.scripted.scripts import Script, Step, answer
from tests.server.harness import CHAT, COMPLETIONS, chat, completion, serving
from tests.server.streams import ROLE, choices_of, delta

pytestmark = pytest.mark.anyio


def engine(*steps: Step) -> ScriptedEngine:
    return ScriptedEngine([Script(steps)])


async def test_chat() -> None:
    async with serving(engine(*answer("Hel", "lo"))) as served:
        events = await served.stream(CHAT, chat())
        for event in events[:-1]:
            ChatCompletionChunk.model_validate(event, strict=True)
            assert "usage" not in event
        assert choices_of(events) == [ROLE, delta(content="Hel"), delta(content="lo"), delta("stop"), "[DONE]"]


async def test_completion() -> None:
    async with serving(engine(*answer("Hel", "lo", reason=FinishReason.LENGTH))) as served:
        events = await served.stream(COMPLETIONS, completion())
        # Null is what OpenAI sends before the end; the SDK's type has no room for it.
        Completion.model_validate(events[-2], strict=True)
        assert choices_of(events) == [
            {"index": 0, "text": "Hel", "logprobs": None, "finish_reason": None},
            {"index": 0, "text": "lo", "logprobs": None, "finish_reason": None},
            {"index": 0, "text": "", "logprobs": None, "finish_reason": "length"},
            "[DONE]",
        ]


async def test_headers() -> None:
    async with serving() as served:
        response = await served.post(CHAT, chat(stream=True))
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert response.headers["cache-control"] == "no-cache"
        assert "content-length" not in response.headers


async def test_usage_is_the_last_chunk() -> None:
    async with serving(engine(*answer("Hi"))) as served:
        events = await served.stream(COMPLETIONS, completion("abc", n=2, stream_options={"include_usage": True}))
        assert events[-1] == "[DONE]"
        assert events[-2]["choices"] == []
        assert events[-2]["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
        assert all(event["usage"] is None for event in events[:-2])
        assert not any("usage" in event for event in (await served.stream(COMPLETIONS, completion()))[:-1])


@pytest.mark.parametrize("held", [0, 1, 9])
async def test_usage_in_every_chunk(held: int) -> None:
    """The counts of the chunk's own choice so far, held back tokens left out; in the last chunk of all choices."""
    options = {"include_usage": True, "continuous_usage_stats": True}
    async with serving(engine(*answer("a", "b", "c")), hold_back_tokens=held) as served:
        events = await served.stream(CHAT, chat("hi", stream_options=options, n=2))
        for index in range(2):
            own = [event for event in events[:-2] if event["choices"][0]["index"] == index]
            usages = [event["usage"] for event in own]
            assert [each["completion_tokens"] for each in usages] == [0, 1, 2, 3, 3]
            assert {each["prompt_tokens"] for each in usages} == {len(b"user: hi\nassistant: ")}
            assert all(each["total_tokens"] == each["prompt_tokens"] + each["completion_tokens"] for each in usages)
        assert events[-2]["usage"]["completion_tokens"] == 6
        options = {"include_usage": False, "continuous_usage_stats": True}
        events = await served.stream(CHAT, chat("hi", stream_options=options))
        assert not any("usage" in event for event in events[:-1]), "as vLLM has it"


async def test_choices_are_told_apart() -> None:
    scripts = [Script(answer(name), when=lambda prompt, name=name: prompt == name) for name in "ab"]  # type: ignore[misc]
    async with serving(ScriptedEngine(scripts)) as served:
        events = await served.stream(COMPLETIONS, completion(["b", "a"]))
        texts = {choice["index"]: choice["text"] for choice in choices_of(events)[:-1] if choice["text"]}
        assert texts == {0: "b", 1: "a"}
        finished = [choice["index"] for choice in choices_of(events)[:-1] if choice["finish_reason"]]
        assert sorted(finished) == [0, 1]


async def test_logprobs_come_with_their_text() -> None:
    def drawn(token: str) -> tuple[TokenLogprob, ...]:
        return (TokenLogprob(token, token.encode(), -0.5),)

    steps = (Chunk("Hé", 1, drawn("Hé")), Chunk("", 1, drawn("y")), Chunk("y!", 1, drawn("!")))
    finish = Finish(FinishReason.STOP, 0, 3, verified=True)
    async with serving(engine(*steps, finish)) as served:
        events = choices_of(await served.stream(COMPLETIONS, completion(logprobs=0)))
        assert [event["logprobs"] and event["logprobs"]["text_offset"] for event in events[:-1]] == [
            [0],
            [2],
            [2],
            None,
        ]
        events = choices_of(await served.stream(CHAT, chat(logprobs=True)))
        tokens = [event["logprobs"]["content"][0]["token"] for event in events[:-1] if event["logprobs"]]
        assert tokens == ["Hé", "y", "!"]
        # Without being asked for, neither logprobs nor a chunk without text.
        events = choices_of(await served.stream(CHAT, chat()))
        assert events == [ROLE, delta(content="Hé"), delta(content="y!"), delta("stop"), "[DONE]"]
