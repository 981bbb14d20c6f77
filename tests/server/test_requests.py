"""What reaches the engine for a request."""

from dataclasses import asdict, replace
from typing import Any

import pytest

from guards.core.policy import Policy, Rule
from guards.core.verdict import GuardKind, GuardMode, Scope
from server.engines.errors import InvalidOptionError
from server.engines.request import Message, Sampling, SamplingDefaults
from server.engines.scripted.engine import ScriptedEngine
from server.engines.scripted.scripts import guard
from tests.server.harness import CHAT, CHECKS, COMPLETIONS, chat, completion, serving

pytestmark = pytest.mark.anyio
ROOM = 4096 - len("user: hi\nassistant: ")
"""What the context leaves for an answer to `chat()`."""


@pytest.mark.parametrize(
    ("prompt", "token_ids"),
    [
        ("hi", [(104, 105)]),
        (["hi", "a"], [(104, 105), (97,)]),
        ([104, 105], [(104, 105)]),
        ([[104], [105]], [(104,), (105,)]),
        (["hi", [97]], [(104, 105), (97,)]),
    ],
)
async def test_forms_of_a_prompt(prompt: object, token_ids: list[tuple[int, ...]]) -> None:
    async with serving() as served:
        await served.post(COMPLETIONS, completion(prompt))
        assert [request.prompt_token_ids for request in served.engine.submitted] == token_ids


async def test_messages_as_the_template_takes_them() -> None:
    messages = [
        {"role": "system", "content": "be kind"},
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}], "name": None},
        {"role": "assistant", "content": "no", "refusal": "no", "tool_calls": None, "annotations": []},
        {"role": "assistant", "content": None, "refusal": "never"},
        {"role": "user", "content": ""},
    ]
    expected = [
        Message("system", "be kind"),
        Message("system", "be brief"),
        Message("user", "one\ntwo"),
        Message("assistant", "no"),
        Message("assistant", "never"),
        Message("user", ""),
    ]
    async with serving() as served:
        response = await served.post(CHAT, {"model": "scripted", "messages": messages})
        assert response.status_code == 200, response.text
        assert served.engine.submitted[0].prompt_token_ids == served.engine.encode_chat(expected)


@pytest.mark.parametrize(
    ("path", "fields", "sampling"),
    [
        (CHAT, {}, Sampling(max_tokens=ROOM)),
        (CHAT, {"max_tokens": 5}, Sampling(max_tokens=5)),
        (CHAT, {"max_completion_tokens": 6}, Sampling(max_tokens=6)),
        (CHAT, {"max_tokens": 7, "max_completion_tokens": 7}, Sampling(max_tokens=7)),
        (CHAT, {"temperature": 0, "top_p": 0.5}, Sampling(max_tokens=ROOM, temperature=0.0, top_p=0.5)),
        (CHAT, {"stop": "a", "seed": 3}, Sampling(max_tokens=ROOM, stop=("a",), seed=3)),
        (CHAT, {"stop": ["a", "b"]}, Sampling(max_tokens=ROOM, stop=("a", "b"))),
        (CHAT, {"logprobs": True}, Sampling(max_tokens=ROOM, logprobs=0)),
        (CHAT, {"logprobs": True, "top_logprobs": 4}, Sampling(max_tokens=ROOM, logprobs=4)),
        (CHAT, {"logprobs": False}, Sampling(max_tokens=ROOM)),
        (COMPLETIONS, {"logprobs": 2, "best_of": 1}, Sampling(max_tokens=4094, logprobs=2)),
        # What asks for what happens anyway, as clients send it by default.
        (
            CHAT,
            {
                "n": None,
                "tools": [],
                "tool_choice": "none",
                "store": False,
                "modalities": ["text"],
                "service_tier": "auto",
                "metadata": None,
                "user": "u1",
                "safety_identifier": "s1",
                "stream": False,
                "stop": None,
            },
            Sampling(max_tokens=ROOM),
        ),
        (COMPLETIONS, {"echo": False, "suffix": None}, Sampling(max_tokens=4094)),
    ],
)
async def test_sampling(path: str, fields: dict[str, object], sampling: Sampling) -> None:
    async with serving() as served:
        response = await served.post(path, chat(**fields) if path == CHAT else completion(**fields))
        assert response.status_code == 200, response.text
        assert served.engine.submitted[0].sampling == sampling


DEFAULTS = SamplingDefaults(
    max_tokens=160,
    temperature=0.6,
    top_p=0.95,
    top_k=20,
    min_p=0.1,
    frequency_penalty=0.2,
    presence_penalty=0.3,
    repetition_penalty=1.05,
)
DRAWN: dict[str, Any] = {**asdict(DEFAULTS), "max_tokens": 160}
del DRAWN["most_tokens"]


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_the_models_defaults_hold_where_a_request_does_not_say(path: str) -> None:
    body = chat() if path == CHAT else completion()
    async with serving(ScriptedEngine(defaults=DEFAULTS)) as served:
        assert (await served.post(path, body)).status_code == 200
        assert served.engine.submitted[-1].sampling == Sampling(**DRAWN)
        neutral = asdict(SamplingDefaults())
        for name, value in {**DRAWN, "max_tokens": 7}.items():
            asked = neutral[name] if name != "max_tokens" else value
            assert (await served.post(path, {**body, name: asked})).status_code == 200
            assert served.engine.submitted[-1].sampling == Sampling(**{**DRAWN, name: asked})
        assert (await served.post(path, {**body, "top_k": -1, "temperature": 0})).status_code == 200
        assert served.engine.submitted[-1].sampling == Sampling(**{**DRAWN, "top_k": 0, "temperature": 0})
        error = await served.error(path, {**body, "min_tokens": 161})
        assert (error["param"], "token limit, 160" in error["message"]) == ("min_tokens", True)
        checked = {"model": "scripted", "prompt": "hi"}
        assert (await served.post(CHECKS, checked)).status_code == 200


async def test_the_operators_length_wins_over_the_models() -> None:
    async with serving(ScriptedEngine(defaults=DEFAULTS), default_max_tokens=9) as served:
        await served.post(CHAT, chat())
        await served.post(CHAT, chat(max_tokens=400))
        assert [request.sampling.max_tokens for request in served.engine.submitted] == [9, 400]


async def test_the_longest_answer_of_an_engine_holds_for_every_request() -> None:
    async with serving(ScriptedEngine(defaults=SamplingDefaults(max_tokens=20, most_tokens=20))) as served:
        for fields in {}, {"max_tokens": 30}, {"max_completion_tokens": 10}:
            assert (await served.post(CHAT, chat(**fields))).status_code == 200
        assert [request.sampling.max_tokens for request in served.engine.submitted] == [20, 20, 10]


async def test_an_answer_ends_where_the_context_ends() -> None:
    async with serving(ScriptedEngine(max_model_tokens=5000)) as served:
        for prompt in ("x", "x" * 4999):
            assert (await served.post(COMPLETIONS, completion(prompt))).status_code == 200
            assert served.engine.submitted[-1].sampling.max_tokens == 5000 - len(prompt)
        error = await served.error(COMPLETIONS, completion("x" * 4990, min_tokens=11))
        assert error["code"] == "context_length_exceeded"


async def test_a_value_that_the_engine_cannot_work_with() -> None:
    """Named as the caller named it, before anything is queued, and the stream's status says so."""
    async with serving() as served:
        for option, fields, param in (
            ("grammar", {"response_format": {"type": "json_object"}}, "response_format"),
            ("grammar", {"structured_outputs": {"regex": "("}}, "structured_outputs"),
            ("logit_bias", {"logit_bias": {"9": 1}}, "logit_bias"),
        ):
            served.engine.invalid = InvalidOptionError("it is wrong", option)
            for path, body in ((CHAT, chat(**fields)), (COMPLETIONS, completion(**fields, stream=True))):
                error = await served.error(path, body)
                assert (error["status"], error["code"], error["param"]) == (400, "invalid_value", param)
                assert error["message"] == f"'{param}': it is wrong"
        assert served.engine.submitted == []


async def test_default_length_leaves_room_for_the_prompt() -> None:
    async with serving(ScriptedEngine(max_model_tokens=64), default_max_tokens=60) as served:
        for prompt, expected in (("x" * 4, 60), ("x" * 5, 59), ("x" * 63, 1)):
            assert (await served.post(COMPLETIONS, completion(prompt))).status_code == 200
            assert served.engine.submitted[-1].sampling.max_tokens == expected
        assert (await served.post(COMPLETIONS, completion("x" * 54, min_tokens=10))).status_code == 200
        error = await served.error(COMPLETIONS, completion("x" * 55, min_tokens=10))
        assert (error["code"], "need 65 tokens" in error["message"]) == ("context_length_exceeded", True)


async def test_each_answer_has_its_own_seed_and_id() -> None:
    async with serving() as served:
        await served.post(COMPLETIONS, completion(["a", "b"], n=3, seed=7))
        await served.client.post(COMPLETIONS, json=completion(), headers={"x-request-id": "same"})
        await served.client.post(COMPLETIONS, json=completion(), headers={"x-request-id": "same"})
        submitted = served.engine.submitted
        assert [request.sampling.seed for request in submitted] == [7, 8, 9, 7, 8, 9, None, None]
        assert len({request.request_id for request in submitted}) == 8


async def test_what_answers_must_match_is_prepared_for_all_of_them() -> None:
    async with serving() as served:
        await served.post(CHAT, chat(n=3, response_format={"type": "json_object"}))
        first, *others = (request.sampling.grammar for request in served.engine.submitted)
        assert first is not None
        assert all(other is first for other in others)
        assert len(others) == 2


async def test_more_of_prompts_than_can_be_told_is_refused() -> None:
    async with serving(ScriptedEngine(max_model_tokens=1 << 20)) as served:
        for more in ({"prompt_logprobs": 20}, {"echo": True, "logprobs": 20}):
            error = await served.error(COMPLETIONS, completion("x" * 2_000, n=8, **more))
            assert error["param"] == next(iter(more))
            assert "16000 tokens of prompts, with 20 alternatives each, are 336000" in error["message"]
            assert (await served.post(COMPLETIONS, completion("x" * 2_000, n=2, **more))).status_code == 200


async def test_the_policy_is_the_operators_and_whole() -> None:
    late = Rule(scope=Scope.GENERATION, taus=(0.25, 0.75))
    engine = ScriptedEngine(
        guards=(guard("a"), replace(guard("b"), rule=late), guard("n", kind=GuardKind.INTERVENTION))
    )
    async with serving(engine, shadow=("b",)) as served:
        await served.post(CHAT, chat())
        await served.post(COMPLETIONS, completion(["x", "y"], n=2))
        expected = Policy({"a": guard("a").rule, "b": replace(late, mode=GuardMode.SHADOW), "n": Rule()})
        assert [request.policy for request in engine.submitted] == [expected] * 5
        assert {request.policy.version for request in engine.submitted} == {expected.version}
