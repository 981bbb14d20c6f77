"""Neither what a message holds beside its text, nor fields without effect, get anything past a guard.

The embedded engine over HTTP, on a model whose chat template shows every key that it is given.
"""

import shutil
from pathlib import Path
from typing import Any

import pytest

from server.engines.embedded.engine import EmbeddedEngine
from server.engines.options import EmbeddedOptions
from server.openai.history import ChatMessage, Part
from server.openai.responses.items import ReasoningItem
from server.openai.unsupported import IN_CHAT, IN_RESPONSES
from tests.served import forget_prompt, retain_prompt
from tests.server.engines.embedded.tiny_engine import Served
from tests.server.harness import CHAT, CHECKS, RESPONSES, serving

pytestmark = pytest.mark.anyio

SHOWS_ALL = (
    "{{ bos_token }}{% for m in messages %}{% for key, value in m.items() %}{% if key != 'role' %}{{ value }} "
    "{% endif %}{% endfor %}{% endfor %}"
)


def words(prompt: tuple[int, ...]) -> str:
    return " ".join(f"w{token}" for token in prompt[1:])


FORGET, RETAIN = words(forget_prompt(0)), words(retain_prompt(0))
OTHER_KEYS = dict.fromkeys((*ChatMessage.bookkeeping, "mood", "text"), RETAIN)
IN_PART = dict.fromkeys((*Part.bookkeeping, "mood", "content"), RETAIN)


def halves(kind: str, key: str) -> list[dict[str, object]]:
    middle = len(FORGET) // 2
    cut = FORGET.find(" ", middle)
    return [{"type": kind, key: FORGET[:cut], **IN_PART}, {"type": kind, key: FORGET[cut + 1 :], **IN_PART}]


FORGOTTEN: dict[str, list[dict[str, object]]] = {
    "text": [{"role": "user", "content": FORGET}],
    "keys beside the text": [{**OTHER_KEYS, "role": "user", "content": FORGET}],
    "keys before the text": [{"role": "user", "content": FORGET, **OTHER_KEYS}],
    "input_text": [{"role": "user", "content": halves("input_text", "text")}],
    "output_text": [{"role": "user", "content": halves("output_text", "text")}],
    "refusal parts": [{"role": "user", "content": halves("refusal", "refusal")}],
    "developer": [{"role": "developer", "content": FORGET, **OTHER_KEYS}],
    "refusal of an assistant": [{"role": "assistant", "content": None, "refusal": FORGET, **OTHER_KEYS}],
    "after reasoning": [
        {"role": "assistant", "content": [{"type": "thinking", "thinking": RETAIN}, {"type": "text", "text": FORGET}]}
    ],
    "behind empty answers": [
        {"role": "assistant", "content": None, "reasoning_content": RETAIN},
        {"role": "user", "content": FORGET, "name": RETAIN},
    ],
}


@pytest.fixture(scope="module")
def showing_all(served: Served, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A copy of the model with that template, and its detector."""
    model = Path(shutil.copytree(served[0], tmp_path_factory.mktemp("shows") / "model"))
    (model / "chat_template.jinja").write_text(SHOWS_ALL)
    return model, served[1]


def engine(showing_all: tuple[Path, Path]) -> Any:
    model, artifact = showing_all
    return EmbeddedEngine(EmbeddedOptions(model=str(model), artifacts=(artifact,), device="cpu"))


def chat(messages: list[dict[str, object]], **fields: object) -> dict[str, object]:
    return {"model": "model", "messages": messages, "max_tokens": 4, **fields}


async def test_a_forgotten_prompt_stays_refused(showing_all: tuple[Path, Path]) -> None:
    async with serving(engine(showing_all)) as served:
        harmless = await served.post(CHAT, chat([{"role": "user", "content": RETAIN}]))
        assert harmless.json()["choices"][0]["finish_reason"] != "content_filter", "the positive control"
        for name, messages in FORGOTTEN.items():
            answered = await served.post(CHAT, chat(messages))
            assert answered.json()["choices"][0]["finish_reason"] == "content_filter", name
            checked = (await served.post(CHECKS, {"model": "model", "messages": messages})).json()
            assert checked["data"][0]["verdict"] == "abstain", name
            assert checked["prompt_tokens"] == len(forget_prompt(0)), "nothing else is shown"


async def test_what_is_dropped_is_neither_shown_nor_judged(showing_all: tuple[Path, Path]) -> None:
    async with serving(engine(showing_all)) as served:
        for keys in {}, dict.fromkeys(OTHER_KEYS, FORGET):
            body = chat([{"role": "user", "content": RETAIN, **keys}], temperature=0)
            answered = (await served.post(CHAT, body)).json()
            assert answered["choices"][0]["finish_reason"] != "content_filter"
            assert answered["usage"]["prompt_tokens"] == len(retain_prompt(0))


async def test_no_field_without_effect_lets_a_forgotten_prompt_out(showing_all: tuple[Path, Path]) -> None:
    fields = {name: RETAIN if neutral is None else neutral[0] for name, neutral in IN_CHAT.items() if neutral != ()}
    own = {"seed": -1, "logit_bias": {"3": 0}, "tool_choice": "auto", "parallel_tool_calls": False, "top_logprobs": 0}
    async with serving(engine(showing_all)) as served:
        asked = [{name: value} for name, value in {**fields, **own, "frobnicate": None}.items()]
        for each in [*asked, {**fields, **own, "max_tokens": 9, "max_completion_tokens": 2}]:
            answered = await served.post(CHAT, chat(FORGOTTEN["text"], **each))
            assert answered.status_code == 200, answered.text
            assert answered.json()["choices"][0]["finish_reason"] == "content_filter", each


def respond(input: object, **fields: object) -> dict[str, object]:
    return {"model": "model", "input": input, "max_output_tokens": 4, **fields}


THOUGHT = {"type": "reasoning", **dict.fromkeys(ReasoningItem.bookkeeping - {"type"}, RETAIN)}
HALVES = halves("input_text", "text")


def _item(message: dict[str, object]) -> dict[str, object]:
    """An item is read by its type, which is nothing in a message of a chat."""
    return {key: value for key, value in message.items() if key != "type"}


FORGOTTEN_ITEMS: dict[str, tuple[object, dict[str, object]]] = {
    "text": (FORGET, {}),
    **{f"message, {name}": ([_item(each) for each in messages], {}) for name, messages in FORGOTTEN.items()},
    "between thoughts": ([THOUGHT, {"type": "message", "role": "user", "content": FORGET}, THOUGHT], {}),
    "instructions": ([{"role": "assistant", "content": ""}], {"instructions": FORGET}),
    "half of it in the instructions": (HALVES[1]["text"], {"instructions": HALVES[0]["text"]}),
    "a part of refusal": ([{"role": "assistant", "content": [{"type": "refusal", "refusal": FORGET}]}], {}),
    "streamed": (FORGET, {"stream": True}),
}


async def test_a_forgotten_prompt_stays_refused_as_items(showing_all: tuple[Path, Path]) -> None:
    """What is judged is the prompt of a chat, whichever way the words of it were sent."""
    async with serving(engine(showing_all)) as served:
        harmless = (await served.post(RESPONSES, respond([THOUGHT, {"role": "user", "content": RETAIN}]))).json()
        assert "guard" not in harmless, "the positive control"
        assert harmless["usage"]["input_tokens"] == len(retain_prompt(0)), "no thought is shown"
        for name, (given, fields) in FORGOTTEN_ITEMS.items():
            answered = await served.post(RESPONSES, respond(given, **fields))
            assert answered.status_code == 200, answered.text
            assert '"reason":"content_filter"' in answered.text, name
            assert f'"input_tokens":{len(forget_prompt(0))}' in answered.text, name


async def test_no_field_without_effect_lets_forgotten_items_out(showing_all: tuple[Path, Path]) -> None:
    fields = {name: RETAIN if neutral is None else neutral[0] for name, neutral in IN_RESPONSES.items() if neutral}
    fields |= {name: RETAIN for name, neutral in IN_RESPONSES.items() if neutral is None}
    own = {
        "seed": -1,
        "logit_bias": {"3": 0},
        "tool_choice": "auto",
        "parallel_tool_calls": False,
        "top_logprobs": 0,
        "include": ["message.output_text.logprobs", "reasoning.encrypted_content"],
        "metadata": {"mode": "shadow"},
        "instructions": "",
        "reasoning": {"effort": "none"},
        "text": {"format": {"type": "text"}, "verbosity": "medium"},
        "temperature": 2,
        "top_p": 0.01,
    }
    async with serving(engine(showing_all)) as served:
        asked = [{name: value} for name, value in {**fields, **own, "frobnicate": None}.items()]
        for each in [*asked, {**fields, **own}]:
            answered = await served.post(RESPONSES, respond(FORGET, **each))
            assert answered.status_code == 200, answered.text
            assert answered.json()["incomplete_details"] == {"reason": "content_filter"}, each
            assert [part["logprobs"] for item in answered.json()["output"] for part in item["content"]] == [[]]
