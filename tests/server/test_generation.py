"""Whole answers, and engines that cannot give one."""

from typing import Any

import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion

from guards.core.verdict import Stage
from server.engines.errors import EngineBusyError
from server.engines.events import Chunk, Event, Finish, FinishReason, TokenLogprob
from server.engines.request import EngineRequest, Sampling
from server.engines.scripted.engine import ScriptedEngine
from server.engines.scripted.scripts import Script, abstention, answer, guard, hit
from server.generation import collect
from tests.server.harness import CHAT, COMPLETIONS, chat, completion, serving

pytestmark = pytest.mark.anyio


async def test_chat_answer() -> None:
    async with serving() as served:
        body = (await served.post(CHAT, chat())).json()
        ChatCompletion.model_validate(body, strict=True)
        assert body.pop("id").startswith("chatcmpl-")
        assert body.pop("created") > 0
        assert body == {
            "object": "chat.completion",
            "model": "scripted",
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": "Hello there.", "refusal": None},
                    "logprobs": None,
                    "finish_reason": "stop",
                }
            ],
            "usage": {"prompt_tokens": 20, "completion_tokens": 3, "total_tokens": 23},
            "prompt_logprobs": None,
        }


async def test_completion_answers_keep_the_order_of_prompts() -> None:
    scripts = [Script(answer(name), when=lambda prompt, name=name: prompt == name) for name in "abc"]  # type: ignore[misc]
    async with serving(ScriptedEngine(scripts)) as served:
        body = (await served.post(COMPLETIONS, completion(["c", "a", "b"], n=2))).json()
        Completion.model_validate(body, strict=True)
        assert body["id"].startswith("cmpl-")
        assert [choice["text"] for choice in body["choices"]] == ["c", "c", "a", "a", "b", "b"]
        assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3, 4, 5]
        # A prompt of one token counts once for its two answers.
        assert body["usage"] == {"prompt_tokens": 3, "completion_tokens": 6, "total_tokens": 9}


async def test_length_is_a_finish_reason() -> None:
    async with serving(ScriptedEngine([Script(answer("a", reason=FinishReason.LENGTH))])) as served:
        assert (await served.post(CHAT, chat())).json()["choices"][0]["finish_reason"] == "length"


LOGPROBS = (
    TokenLogprob("He", b"He", -0.5, (("He", b"He", -0.5), ("Hi", b"Hi", -1.5))),
    TokenLogprob("y", b"y", float("-inf"), (("o", b"o", -0.25),)),
)
WITH_LOGPROBS = Script(
    (Chunk("Hey", tokens=2, logprobs=LOGPROBS), Finish(FinishReason.STOP, 0, completion_tokens=2, verified=True))
)


async def test_logprobs() -> None:
    async with serving(ScriptedEngine([WITH_LOGPROBS])) as served:
        body = (await served.post(CHAT, chat(logprobs=True, top_logprobs=2))).json()
        ChatCompletion.model_validate(body, strict=True)
        assert body["choices"][0]["logprobs"] == {
            "content": [
                {
                    "token": "He",
                    "logprob": -0.5,
                    "bytes": [72, 101],
                    "top_logprobs": [
                        {"token": "He", "logprob": -0.5, "bytes": [72, 101]},
                        {"token": "Hi", "logprob": -1.5, "bytes": [72, 105]},
                    ],
                },
                {
                    "token": "y",
                    "logprob": -9999.0,
                    "bytes": [121],
                    "top_logprobs": [{"token": "o", "logprob": -0.25, "bytes": [111]}],
                },
            ],
            "refusal": None,
        }
        body = (await served.post(COMPLETIONS, completion(logprobs=2))).json()
        Completion.model_validate(body, strict=True)
        assert body["choices"][0]["logprobs"] == {
            "tokens": ["He", "y"],
            "token_logprobs": [-0.5, -9999.0],
            "top_logprobs": [{"He": -0.5, "Hi": -1.5}, {"o": -0.25, "y": -9999.0}],
            "text_offset": [0, 2],
        }
        assert (await served.post(CHAT, chat())).json()["choices"][0]["logprobs"] is None


async def test_full_queue() -> None:
    async with serving() as served:
        served.engine.refusal = EngineBusyError("8 requests are waiting already; try again", retry_after_seconds=3)
        for fields in {}, {"stream": True}:
            response = await served.post(CHAT, chat(**fields))
            assert (response.status_code, response.headers["retry-after"]) == (429, "3")
            assert response.json()["error"] == {
                "message": "8 requests are waiting already; try again",
                "type": "rate_limit_error",
                "param": None,
                "code": "engine_busy",
            }


BROKEN: list[tuple[tuple[Any, ...], str]] = [
    ((Chunk("secret", 1), Finish(FinishReason.ERROR, 0, 1, verified=True, error="CUDA")), "engine_error"),
    ((Chunk("secret", 1), Finish(FinishReason.ERROR, 0, 1, verified=False, error="NaN")), "guard_error"),
    ((Chunk("secret", 1), Finish(FinishReason.STOP, 0, 1, verified=False)), "guard_error"),
    ((Chunk("secret", 1), Finish(FinishReason.LENGTH, 0, 1, verified=False)), "guard_error"),
    ((Chunk("secret", 1),), "engine_error"),
]


@pytest.mark.parametrize(("steps", "code"), BROKEN)
async def test_broken_answer_lets_nothing_out(steps: tuple[Any, ...], code: str) -> None:
    """The last is an engine that breaks its contract: no Finish."""
    scripts = [Script(steps, when=lambda prompt: "bad" in prompt), Script(answer("fine"))]
    async with serving(ScriptedEngine(scripts)) as served:
        for prompts in ("bad", ["good", "bad"]):
            response = await served.post(COMPLETIONS, completion(prompts))
            assert response.status_code == 500
            error = response.json()["error"]
            assert (error["type"], error["param"], error["code"]) == ("server_error", None, code)
            assert response.headers["x-request-id"] in error["message"]
            for inner in ("secret", "fine", "CUDA", "NaN"):
                assert inner not in response.text


async def test_withheld_text_goes_no_further_than_the_engine() -> None:
    """The routes replace it as well; here it is gone already."""
    steps = abstention(hit(guard(), Stage.GENERATION), "secret")
    engine = ScriptedEngine([Script(steps)])
    request = EngineRequest("r1", (104, 105), Sampling(max_tokens=4))

    async def ignore(_: Event) -> None:
        pass

    (collected,) = await collect(engine, [request], lambda _: ignore)
    assert (collected.text, collected.logprobs) == ("", ())
