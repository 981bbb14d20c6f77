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
from server.openai.unsupported import IN_CHAT
from tests.served import forget_prompt, retain_prompt
from tests.server.engines.embedded.tiny_engine import Served
from tests.server.harness import CHAT, CHECKS, serving

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
