"""How templates open messages: found by rendering, told by special tokens, blank ends left open."""

from itertools import groupby
from operator import itemgetter
from typing import Any

import pytest

from guards.calibration.accumulated import turns_of
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
QUOTED = LLAMA_3.replace("{{ m['content'] | trim }}", "{% if m['role'] == 'tool' %}{{ m['content'] | tojson }}"
    "{% else %}{{ m['content'] | trim }}{% endif %}{% for call in m['tool_calls'] or [] %}"
    "{{ call['function'] | tojson }}{% endfor %}")  # fmt: skip
"""What a tool says begins with a quotation mark, as answers may."""
NAMED = TOOLS.replace("<|end|>{{ m['content'] }}", "{{ m['tool_call_id'] }}: <|end|>{{ m['content'] }}")
"""And by the call's id."""
ALWAYS_ANSWERED = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}{{ m['content'] }}<|eos|>\n{% else %}"
    "<|turn|>{{ m['role'] }}\n{{ m['content'] }}<|eos|>\n<|turn|>assistant\n{% endif %}{% endfor %}"
)
"""An answer is opened behind every question, as in Phi-3's template."""
THINKING = LLAMA_3.replace("assistant<|end|>\n\n{% endif %}", "assistant<|end|>\n\n[think]{% endif %}")
"""An answer that is due begins with words of the template's, which a caller may write too."""
CALLED = [{"id": "x", "type": "function", "function": {"name": "add", "arguments": {"a": "1", "b": "2"}}}]
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


def spoken(template: str, messages: list[dict[str, Any]]) -> list[tuple[str, bool]]:
    """A conversation's words that count, a stretch of one side each, and whether they are the model's."""
    codec = TextCodec(tokenizer(template))
    ids = codec.rendered(messages).ids
    turns = turns_of(ids, codec.openings)
    found = [(token, bool(of)) for token, counts, of in zip(ids, turns.counted, turns.written, strict=True) if counts]
    sides = groupby(found, key=itemgetter(1))
    return [(codec.tokenizer.decode([token for token, _ in each]).strip(), of) for of, each in sides]


def said(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


@pytest.mark.parametrize("template", [TURNS, LLAMA_3, QUOTED, TOOLS, ALWAYS_ANSWERED])
@pytest.mark.parametrize("answer", ['"So it is"', "# Title", "{}", "user", "1"])
def test_no_answer_is_taken_for_somebody_elses_words(template: str, answer: str) -> None:
    found = spoken(template, [said("user", "Mike"), said("assistant", answer), said("user", "Quebec")])
    assert found == [("Mike", False), (answer, True), ("Quebec", False)]


def test_no_question_is_taken_for_the_models_words() -> None:
    asked = "[think] Mike"
    assert spoken(THINKING, [said("user", asked)])[0] == (asked, False)
    assert spoken(THINKING, [said("user", "a"), said("assistant", "b"), said("user", asked)])[2] == (asked, False)


@pytest.mark.parametrize("template", [QUOTED, TOOLS, NAMED])
@pytest.mark.parametrize("result", ["The sum", "3", "sum"])
def test_what_a_tool_says_is_asked_whatever_it_is(template: str, result: str) -> None:
    asked = [said("user", "Mike"), said("assistant", "", tool_calls=CALLED), said("tool", result, tool_call_id="abc")]
    (first, _), (call, wrote), (last, written) = spoken(template, asked)
    assert (first, wrote, written) == ("Mike", True, False)
    assert "add" in call
    assert result in last


def test_an_answer_that_is_opened_and_not_given_takes_no_word() -> None:
    codec = TextCodec(tokenizer(ALWAYS_ANSWERED))
    asked = [said("user", "Mike"), said("user", "Oscar"), said("assistant", "yes"), said("user", "Quebec")]
    changes = turns_of(codec.rendered(asked).ids, codec.openings).changes
    wanted = turns_of(codec.rendered([*asked[:1], *asked[2:]]).ids, codec.openings).changes
    assert int(changes.sum()) == int(wanted.sum()) + 1, "the answer's, which was opened; not the second question's"
    assert spoken(ALWAYS_ANSWERED, asked) == [("MikeOscar", False), ("yes", True), ("Quebec", False)]


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
