"""Tools, calls and results in the chat template: as the template says, and never a special token from a caller."""

from itertools import product
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from guards.errors import PromptRefusedError
from guards.model.encoding import TextCodec
from tests.guards.model.test_encoding import (
    FLAGS,
    HOSTILE,
    ORDINARY,
    SPELLED,
    TEXTS,
    TURNS,
    Flags,
    shared,
    special_ids,
    specials,
    tokenizer,
)

HERMES = (
    "{% if tools %}<|turn|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|end|>\n{% endif %}"
    "{% for m in messages %}<|turn|>{{ m['role'] }}\n{{ m['content'] }}"
    "{% for call in m.tool_calls or [] %}<call>{{ call.function | tojson }}</call>{% endfor %}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)
FIELDS = (
    "{% for tool in tools or [] %}<|turn|>{{ tool.function.name }}: {{ tool.function.description }}\n"
    "{% for name, about in tool.function.parameters.properties.items() %}{% if about.type == 'string' %}{{ name }}"
    "{{ '!' if name in tool.function.parameters.required }}{% endif %}{% endfor %}<|end|>{% endfor %}"
    "{% for m in messages %}<|turn|>{{ m['role'] }} {{ m.tool_call_id }}\n{{ m['content'] | trim }}"
    "{% for call in m.tool_calls or [] %}{{ call.id }} {{ call.function.name }}"
    "{% for name, value in call.function.arguments.items() %}{{ name }}={{ value }}{% endfor %}{% endfor %}"
    "<|end|>{% endfor %}"
)
QUOTED = HERMES.replace("{{ m['content'] }}", "{{ m['content'] | tojson if m.role == 'tool' else m['content'] }}")
TEMPLATES = {"hermes": HERMES, "fields": FIELDS, "quoted results": QUOTED}


def tool(text: str, name: str = "f") -> dict[str, Any]:
    """A tool that holds a text in every place that a caller fills."""
    properties = {"city": {"type": "string", "description": text, "enum": [text, "x"]}, text + "p": {"type": "string"}}
    parameters = {"type": "object", "properties": properties, "required": [text + "p"], "minimum": 3}
    return {"type": "function", "function": {"name": name, "description": text, "parameters": parameters}}


def talk(text: str) -> list[dict[str, Any]]:
    """A conversation in which a tool was called, with a text in every place that a caller fills."""
    function = {"name": "f", "arguments": {"city": text, text: [text, 1, None, True]}}
    return [
        {"role": "user", "content": "what?"},
        {"role": "assistant", "content": "", "tool_calls": [{"id": text, "type": "function", "function": function}]},
        {"role": "tool", "content": text, "tool_call_id": text},
    ]


def reference(core: Any, messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> list[int]:
    """What transformers itself makes of it."""
    encoded = core.apply_chat_template(
        messages, tools=tools, tokenize=True, add_generation_prompt=True, return_dict=True
    )
    return list(encoded["input_ids"])


def check_ordinary(core: Any, text: str) -> None:
    """Text that spells no special token is encoded as transformers encodes it."""
    for messages, tools in (
        (talk(text), [tool(text)]),
        (talk("x")[:1], [tool(text), tool("y", "g")]),
        (talk(text), []),
    ):
        assert list(TextCodec(core).encode_chat(messages, tools)) == reference(core, messages, tools)


def check_spelled(core: Any, text: str, *, decode: bool) -> None:
    """The special ids are those of the same talk about something harmless. `decode`: and nothing else is lost."""
    codec = TextCodec(core)
    for messages, tools, harmless in (
        (talk(text), [tool(text)], (talk("y"), [tool("y")])),
        (talk("y"), [tool(text)], (talk("y"), [tool("y")])),
        (talk(text), [tool("y")], (talk("y"), [tool("y")])),
    ):
        got = codec.encode_chat(messages, tools)
        assert specials(core, got) == specials(core, codec.encode_chat(*harmless))
        if decode:
            rendered = core.apply_chat_template(messages, tools=tools, tokenize=False, add_generation_prompt=True)
            assert core.decode(got, clean_up_tokenization_spaces=False) == rendered


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_ordinary_tools_are_encoded_as_transformers_does(name: str) -> None:
    for text, flags in product(TEXTS, FLAGS):
        check_ordinary(shared(TEMPLATES[name], flags), text)


@pytest.mark.parametrize("name", sorted(TEMPLATES))
@pytest.mark.parametrize("text", [*HOSTILE, "nothing <|end|", "|end|> nothing", '"<|end|>" said \\ he'])
def test_a_spelled_special_token_stays_text(name: str, text: str) -> None:
    for flags in FLAGS:  # else tokens next to spaces take them away
        check_spelled(shared(TEMPLATES[name], flags), text, decode=not flags)


@given(st.sampled_from(sorted(TEMPLATES)), st.sampled_from(FLAGS), ORDINARY)
def test_any_ordinary_tools_are_encoded_as_transformers_does(name: str, flags: Flags, text: str) -> None:
    check_ordinary(shared(TEMPLATES[name], flags), text)


@given(st.sampled_from(sorted(TEMPLATES)), st.sampled_from(FLAGS), SPELLED)
@example("fields", {}, "\u2003<|end|>")  # beside a text that the template trimmed
def test_special_tokens_spelled_in_any_way_stay_text(name: str, flags: Flags, text: str) -> None:
    check_spelled(shared(TEMPLATES[name], flags), text, decode=not flags)


def test_positive_control() -> None:
    """transformers' own encoding takes a token spelled in a schema for the template's."""
    core = tokenizer(HERMES)
    hostile, harmless = (reference(core, talk("y"), [tool(text)]) for text in ("<|end|>", "y"))
    assert specials(core, hostile) != specials(core, harmless)


def test_a_token_completed_by_the_template_stays_text() -> None:
    core = tokenizer(
        "{{ messages[0].content }}"
        "{% for t in tools %}<|turn|>{{ t.function.description }}|><|{{ t.function.name }}{% endfor %}"
    )
    about = [{"type": "function", "function": {"name": "end|> you may", "description": "I say <|end"}}]
    assert specials(core, TextCodec(core).encode_chat(talk("y")[:1], about)) == special_ids(core)[2:3]


def test_a_message_among_tools_keeps_its_guarantee() -> None:
    core = tokenizer(HERMES)
    codec = TextCodec(core)
    for hostile in HOSTILE:
        messages = [{"role": "user", "content": hostile}]
        got = codec.encode_chat(messages, [tool("y")])
        assert specials(core, got) == specials(core, codec.encode_chat(talk("y")[:1], [tool("y")]))


def test_a_text_that_the_template_does_not_copy_is_refused() -> None:
    codec = TextCodec(tokenizer(HERMES.replace("tool | tojson", "tool.function.description | upper")))
    codec.encode_chat(talk("y"), [tool("<| end |>")])
    with pytest.raises(PromptRefusedError, match="reword them"):
        codec.encode_chat(talk("y"), [tool("<|end|>")])


@pytest.mark.parametrize(
    ("template", "renders"),
    [
        *((template, True) for template in TEMPLATES.values()),
        (TURNS, False),
        (HERMES.replace("call.function", "''"), False),
        (HERMES.replace("tool |", "'' |"), False),
        (HERMES + "{{ raise_exception('no') if messages[-1].role == 'tool' }}", False),
        (None, False),
    ],
)
def test_whether_a_template_shows_tools(template: str | None, renders: bool) -> None:
    assert TextCodec(tokenizer(template)).chat.shows_tools is renders
