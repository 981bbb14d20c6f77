"""How templates open messages: found by rendering, told by special tokens, blank ends left open."""

import pytest

from guards.model.encoding import TextCodec
from guards.model.openings import LONGEST
from tests.guards.model.test_encoding import TEMPLATES, TURNS, tokenizer

LLAMA_3 = (
    "{{ bos_token }}{% for m in messages %}<|turn|>{{ m['role'] }}<|end|>\n\n{{ m['content'] | trim }}<|eos|>"
    "{% endfor %}{% if add_generation_prompt %}<|turn|>assistant<|end|>\n\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}<|turn|> {{ m['content'] }} <|end|>"
    "{% elif m['role'] == 'assistant' %}{{ m['content'] }}<|eos|>{% endif %}{% endfor %}"
)
AS_THE_MODEL = MISTRAL.replace("{% elif m['role'] == 'assistant' %}", "{% else %}")
"""Whoever is not the user speaks as the model does."""
TOOLS = (
    "{{ bos_token }}{% for m in messages %}<|turn|>{{ 'user' if m['role'] == 'tool' else m['role'] }}\n"
    "{% if m['role'] == 'tool' %}<|end|>{% endif %}{{ m['content'] }}"
    "{% for call in m['tool_calls'] or [] %}<|end|>{{ call['function'] | tojson }}{% endfor %}<|eos|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)
"""What a tool says opens by one token more, behind what opens a user's message."""
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}" + TURNS
LONG = "{{ bos_token }}<|turn|>" + "a b c d e f g h " * 4 + "<|end|>" + TURNS


def opened(template: str) -> dict[str, bool]:
    """What the tokens of each opening spell, without its blank end, and whether an answer begins there."""
    codec = TextCodec(tokenizer(template))
    return {codec.tokenizer.decode(each.tokens[: each.named]).replace(" ", ""): each.written for each in codec.openings}


def test_each_role_opens_in_its_own_way() -> None:
    found = opened(TURNS)
    assert found["<|end|>\n<|turn|>assistant"] is True
    assert found["<|end|>\n<|turn|>user"] is False
    assert {written for text, written in found.items() if text.endswith("assistant")} == {True}
    assert {written for text, written in found.items() if not text.endswith("assistant")} == {False}


@pytest.mark.parametrize("template", [LLAMA_3, MISTRAL, NO_SYSTEM, TEMPLATES["trimmed"], LONG])
def test_answers_are_told_from_questions(template: str) -> None:
    assert set(opened(template).values()) == {True, False}


@pytest.mark.parametrize("template", [TURNS, LLAMA_3, TEMPLATES["trimmed"], LONG])
@pytest.mark.parametrize("role", ["user", "system"])
def test_whoever_asks_is_heard_wherever_the_message_stands(template: str, role: str) -> None:
    """What opens it is an opening, or ends in one, that names no answer."""
    codec = TextCodec(tokenizer(template))
    turns = [("user", "Mike"), ("assistant", "November"), (role, "Oscar papa"), ("user", "Quebec")]
    rendered = codec.rendered([{"role": each, "content": text} for each, text in turns])
    at = rendered.text.index("Oscar papa")
    before = [token for token, (_, end) in zip(rendered.ids, rendered.spans, strict=True) if end <= at]
    known = {each.tokens[: each.named]: each.written for each in codec.openings}
    cut = [tuple(before[start:stop]) for stop in range(len(before) + 1) for start in range(stop)]
    last = [known[each] for each in cut if each in known]
    assert last[-1] is False
    assert True in last, "the answer before it was opened too"


def test_ends_of_openings_count_but_for_those_of_both_sides() -> None:
    found = opened(LLAMA_3)
    assert found["<|turn|>system<|end|>"] is False
    assert found["<|turn|>assistant<|end|>"] is True
    assert "<|end|>" not in found, "it ends what names either side"


def test_what_a_tool_says_is_asked() -> None:
    found = opened(TOOLS)
    assert found["<|turn|>user\n<|end|>"] is False


def test_a_template_in_which_others_speak_as_the_model_does_tells_nobody_apart() -> None:
    assert opened(AS_THE_MODEL) == {}


@pytest.mark.parametrize("name", ["no special tokens", "adjoining", "reversed"])
def test_a_template_that_does_not_tell_them_apart_has_no_openings(name: str) -> None:
    assert opened(TEMPLATES[name]) == {}


def test_without_a_template_there_are_none() -> None:
    assert TextCodec(tokenizer(None)).openings == ()


def test_an_opening_starts_with_a_special_token_and_is_short() -> None:
    """A caller's text never holds one, and no more tokens are looked back at."""
    for template in (TURNS, LLAMA_3, MISTRAL, LONG):
        codec = TextCodec(tokenizer(template))
        assert all(each.tokens[0] in codec.special_ids for each in codec.openings)
        assert all(0 < each.named <= len(each.tokens) <= LONGEST for each in codec.openings)
