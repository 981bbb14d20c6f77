"""What a caller gets in place of a withheld answer, in each style, on both endpoints, streamed or not."""

from pathlib import Path
from typing import Any

import pytest
from openai.types.chat import ChatCompletion

from guards.core.verdict import GuardMode, Stage
from server.auth import Role, new_key
from server.engines.events import Chunk, Finish, FinishReason, TokenLogprob
from server.engines.scripted.engine import ScriptedEngine
from server.engines.scripted.scripts import Script, abstention, answer, guard, hit
from tests.server.harness import CHAT, COMPLETIONS, Served, chat, completion, keys_file, serving

pytestmark = pytest.mark.anyio

TEXT = "No cooking here."
USER_GUARD = {"action": "abstain", "skill": "cooking", "method": "ksd", "stage": "prompt"}
OPERATOR_GUARD = {
    **USER_GUARD,
    "guard": "demo",
    "score": 0.25,
    "tau": 0.5,
    "layers": [1],
    "part": "cube 0",
    "position": 7,
}
FINISH_REASONS = {"content_filter": "content_filter", "refusal": "stop"}


def engine() -> ScriptedEngine:
    """Abstains at the prompt on "cook", after two tokens on "later", and answers anything else."""
    of = guard()
    return ScriptedEngine(
        [
            Script(abstention(hit(of)), when=lambda prompt: "cook" in prompt),
            Script(abstention(hit(of, Stage.GENERATION), "Take", " eggs"), when=lambda prompt: "later" in prompt),
            Script(answer("Hello", ".")),
        ]
    )


@pytest.mark.parametrize(("style", "shown_as"), [("content_filter", "content"), ("refusal", "refusal")])
async def test_chat(style: str, shown_as: str) -> None:
    """The text is there once: clients show content and refusal one behind the other."""
    async with serving(engine(), abstain_style=style, abstain_text=TEXT, anonymous_role="operator") as served:
        body = (await served.post(CHAT, chat("cook"))).json()
        ChatCompletion.model_validate(body, strict=True)
        assert body["choices"] == [
            {
                "index": 0,
                "message": {"role": "assistant", "content": None, "refusal": None, shown_as: TEXT},
                "logprobs": None,
                "finish_reason": FINISH_REASONS[style],
                "guard": OPERATOR_GUARD,
            }
        ]
        assert body["usage"] == {"prompt_tokens": 22, "completion_tokens": 1, "total_tokens": 23}


@pytest.mark.parametrize("style", FINISH_REASONS)
async def test_whole_answer_is_replaced_whole(style: str) -> None:
    async with serving(engine(), abstain_style=style, abstain_text=TEXT, anonymous_role="operator") as served:
        response = await served.post(COMPLETIONS, completion("later", logprobs=1))
        assert "eggs" not in response.text
        assert response.json()["choices"] == [
            {
                "index": 0,
                "text": TEXT,
                "logprobs": None,
                "prompt_logprobs": None,
                "finish_reason": FINISH_REASONS[style],
                "guard": {**OPERATOR_GUARD, "stage": "generation"},
            }
        ]
        assert response.json()["usage"]["completion_tokens"] == 3


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "body"), [(CHAT, chat("cook")), (COMPLETIONS, completion("cook"))])
async def test_error_style_before_the_first_byte(path: str, body: dict[str, object], stream: bool) -> None:
    async with serving(engine(), abstain_style="error", abstain_text=TEXT, anonymous_role="operator") as served:
        error = await served.error(path, {**body, "stream": stream})
        assert error == {
            "status": 400,
            "message": "This request needs the skill 'cooking', which this server withholds.",
            "type": "invalid_request_error",
            "param": None,
            "code": "skill_abstained",
            "guard": OPERATOR_GUARD,
        }


async def test_each_choice_has_its_own_outcome() -> None:
    async with serving(engine(), abstain_text=TEXT) as served:
        body = (await served.post(COMPLETIONS, completion(["hi", "cook", "later"]))).json()
        assert [choice["text"] for choice in body["choices"]] == ["Hello.", TEXT, TEXT]
        assert [choice["finish_reason"] for choice in body["choices"]] == ["stop", *["content_filter"] * 2]
        assert ["guard" in choice for choice in body["choices"]] == [False, True, True]


async def test_error_style_ends_the_whole_request() -> None:
    async with serving(engine(), abstain_style="error") as served:
        error = await served.error(COMPLETIONS, completion(["hi", "later"]))
        assert (error["status"], error["code"]) == (400, "skill_abstained")


async def outcome(served: Served, **headers: str) -> dict[str, Any]:
    response = await served.post(CHAT, chat("cook"), **headers)
    result: dict[str, Any] = response.json()["choices"][0]["guard"]
    return result


async def test_scores_are_for_operators(tmp_path: Path) -> None:
    user, user_entry = new_key("ann", Role.USER)
    operator, operator_entry = new_key("olga", Role.OPERATOR)
    async with serving(engine(), api_keys_file=keys_file(tmp_path, user_entry, operator_entry)) as served:
        assert await outcome(served, authorization=f"Bearer {user}") == USER_GUARD
        assert await outcome(served, authorization=f"Bearer {operator}") == OPERATOR_GUARD


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
async def test_without_keys_callers_are_users_unless_the_operator_says_otherwise(host: str) -> None:
    async with serving(engine(), host=host) as served:
        assert await outcome(served) == USER_GUARD
    async with serving(engine(), host=host, anonymous_role="operator") as served:
        assert await outcome(served) == OPERATOR_GUARD


async def test_shadowed_hit_changes_nothing_for_the_caller() -> None:
    steps = answer("Hello", ".", hits=(hit(guard(), mode=GuardMode.SHADOW),))
    async with serving(ScriptedEngine([Script(steps)]), shadow=("demo",)) as served:
        choice = (await served.post(CHAT, chat())).json()["choices"][0]
        assert choice["message"]["content"] == "Hello."
        assert choice["finish_reason"] == "stop"
        assert "guard" not in choice


async def test_abstained_choice_shows_no_logprobs() -> None:
    drawn = TokenLogprob("eggs", b"eggs", -0.1)
    finish = Finish(FinishReason.ABSTAIN, 0, 2, verified=True, hits=(hit(guard(), Stage.GENERATION),))
    async with serving(ScriptedEngine([Script((Chunk("eggs", 1, (drawn,)), finish))])) as served:
        response = await served.post(CHAT, chat(logprobs=True))
        assert response.json()["choices"][0]["logprobs"] is None
        assert "eggs" not in response.text
