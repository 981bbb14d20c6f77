"""What reaches the engine for a request."""

from dataclasses import replace

import pytest

from guards.core.policy import Policy, Rule
from guards.core.verdict import GuardKind, GuardMode, Scope
from server.engines.base import Message, Sampling
from server.engines.scripted.engine import ScriptedEngine
from server.engines.scripted.scripts import guard
from tests.server.harness import CHAT, COMPLETIONS, chat, completion, serving

pytestmark = pytest.mark.anyio


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
        (CHAT, {}, Sampling(max_tokens=512)),
        (CHAT, {"max_tokens": 5}, Sampling(max_tokens=5)),
        (CHAT, {"max_completion_tokens": 6}, Sampling(max_tokens=6)),
        (CHAT, {"max_tokens": 7, "max_completion_tokens": 7}, Sampling(max_tokens=7)),
        (CHAT, {"temperature": 0, "top_p": 0.5}, Sampling(max_tokens=512, temperature=0.0, top_p=0.5)),
        (CHAT, {"stop": "a", "seed": 3}, Sampling(max_tokens=512, stop=("a",), seed=3)),
        (CHAT, {"stop": ["a", "b"]}, Sampling(max_tokens=512, stop=("a", "b"))),
        (CHAT, {"logprobs": True}, Sampling(max_tokens=512, logprobs=0)),
        (CHAT, {"logprobs": True, "top_logprobs": 4}, Sampling(max_tokens=512, logprobs=4)),
        (CHAT, {"logprobs": False}, Sampling(max_tokens=512)),
        (COMPLETIONS, {"logprobs": 2, "best_of": 1}, Sampling(max_tokens=512, logprobs=2)),
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
            Sampling(max_tokens=512),
        ),
        (COMPLETIONS, {"echo": False, "suffix": None}, Sampling(max_tokens=512)),
    ],
)
async def test_sampling(path: str, fields: dict[str, object], sampling: Sampling) -> None:
    async with serving() as served:
        response = await served.post(path, chat(**fields) if path == CHAT else completion(**fields))
        assert response.status_code == 200, response.text
        assert served.engine.submitted[0].sampling == sampling


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
