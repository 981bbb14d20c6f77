"""What the Responses API refuses, and by which name."""

import json
from typing import Any

import pytest

from tests.server.harness import MODEL, RESPONSES, responses, serving
from tests.server.test_responses import CALLED, CLOCK, LOGPROBS, OUT, USER

pytestmark = pytest.mark.anyio

FORMAT: dict[str, Any] = {"type": "json_schema", "name": "n", "schema": {}}
IMAGE = {"type": "input_image", "image_url": "http://x"}


def formatted(**fields: object) -> dict[str, object]:
    return responses(text={"format": fields})


INVALID: list[tuple[dict[str, object], str, str]] = [
    # body, param, part of the message
    ({"model": MODEL}, "input", "is missing"),
    (responses(None), "input", "valid list; got null"),
    (responses(5), "input", "valid list; got 5"),
    (responses([]), "input", "at least 1 item"),
    (responses([{"type": "reasoning", "summary": []}]), "input", "should hold a message"),
    (responses(["hi"]), "input[0]", "it should be an object"),
    (responses([USER, {"type": "item_reference", "id": "msg_1"}]), "input[1].type", "nothing is stored"),
    (responses([{"type": "computer_call"}]), "input[0].type", "should be one of message, function_call"),
    (responses([{"type": ["message"], **USER}]), "input[0].type", "should be one of"),
    (responses([{"content": "hi"}]), "input[0].role", "is missing"),
    (responses([{"role": "robot", "content": "hi"}]), "input[0].role", "it should be 'system'"),
    (responses([{"role": "user"}]), "input[0].content", "needs 'content'"),
    (responses([{"role": "user", "content": [IMAGE]}]), "input[0].content[0].type", "only text is supported"),
    (responses([{**CALLED, "name": None}]), "input[0].name", "valid string"),
    (responses([{**OUT, "call_id": ""}]), "input[0].call_id", "at least 1 character"),
    (responses([{**OUT, "output": 5}]), "input[0].output", "a string or a list of text parts"),
    (responses([{**OUT, "output": [IMAGE]}]), "input[0].output[0].type", "only text is supported"),
    (responses([{**OUT, "output": [{"type": "thinking"}]}]), "input[0].output", "cannot have parts of reasoning"),
    (responses([{"type": "function_call_output", "call_id": "a"}]), "input[0].output", "is missing"),
    (responses(instructions=["a"]), "instructions", "valid string"),
    (responses(max_output_tokens=0), "max_output_tokens", "greater than or equal to 1"),
    (responses(min_tokens=4, max_output_tokens=3), "min_tokens", "wanted at most the token limit, 3."),
    (responses(temperature=3), "temperature", "less than or equal to 2"),
    (responses(stream="yes"), "stream", "valid boolean"),
    (responses(stream_options={}), "stream_options", "together with 'stream': true"),
    (responses(top_logprobs=2), "top_logprobs", 'together with \'include\': ["message.output_text.logprobs"]'),
    (responses(top_logprobs=21, include=[LOGPROBS]), "top_logprobs", "less than or equal to 20"),
    (responses(include=["everything"]), "include[0]", "it should be 'message.output_text.logprobs'"),
    (responses(metadata={"a": 1}), "metadata.a", "valid string"),
    (responses(metadata=[]), "metadata", "it should be"),
    (responses(frobnicate=1), "frobnicate", "is not a field of this request"),
    (responses(text="json"), "text", "it should be an object"),
    (responses(text={"mood": 1}), "text.mood", "is not a field"),
    (formatted(), "text.format.type", "is missing"),
    (formatted(type="xml"), "text.format.type", "'text', 'json_object' or 'json_schema'"),
    (formatted(type="json_schema", schema={}), "text.format.name", "goes with 'type': 'json_schema'"),
    (formatted(type="json_schema", name="n"), "text.format.schema", "goes with"),
    (formatted(type="json_object", schema={}), "text.format.schema", "no other type"),
    (formatted(**{**FORMAT, "schema": "{}"}), "text.format.schema", "it should be an object, a JSON schema"),
    (formatted(**FORMAT, json_schema={}), "text.format.json_schema", "is not a field"),
    (
        {**formatted(**FORMAT), "structured_outputs": {"regex": "a"}},
        "structured_outputs",
        "'structured_outputs' and 'text.format' both say",
    ),
    ({**formatted(**FORMAT), "tools": [CLOCK]}, "text.format", "send one of them"),
    (responses(tools={}), "tools", "valid list"),
    (responses(tools=[{"type": "web_search"}]), "tools[0].type", "should be 'function'"),
    (responses(tools=[{"name": "f"}]), "tools[0].type", "is missing"),
    (responses(tools=[{"type": "function"}]), "tools[0].name", "is missing"),
    (responses(tools=[{"type": "function", "function": {"name": "f"}}]), "tools[0].name", "is missing"),
    (responses(tools=[{**CLOCK, "name": "a b"}]), "tools[0].name", "1 to 64 letters"),
    (responses(tools=[{**CLOCK, "parameters": []}]), "tools[0].parameters", "an object, a JSON schema"),
    (responses(tools=[CLOCK, CLOCK]), "tools", "one name"),
    (responses(tools=[CLOCK] * 129), "tools", "at most 128 items"),
    (responses(tool_choice="required"), "tool_choice", "together with 'tools'"),
    (responses(tools=[CLOCK], tool_choice="any"), "tool_choice", 'it should be "none", "auto", "required"'),
    (responses(tools=[CLOCK], tool_choice={"type": "allowed_tools"}), "tool_choice", "it should be"),
    (responses(tools=[CLOCK], tool_choice={"type": "function"}), "tool_choice.name", "goes with"),
    (responses(tools=[CLOCK], tool_choice={"type": "function", "name": "f"}), "tool_choice", "name one of the 'tools'"),
    (responses(tools=[CLOCK], parallel_tool_calls=1), "parallel_tool_calls", "valid boolean"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "param", "says"), INVALID)
async def test_invalid_field(body: dict[str, object], param: str, says: str) -> None:
    async with serving() as served:
        error = await served.error(RESPONSES, body)
        assert (error["status"], error["code"], error["param"]) == (400, "invalid_value", param), error
        assert says in error["message"]
        assert served.engine.submitted == []


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"store": True}, "store", "answers are not stored here"),
        ({"previous_response_id": "resp_1"}, "previous_response_id", "send the whole conversation as 'input'"),
        ({"conversation": "conv_1"}, "conversation", "send the whole conversation as 'input'"),
        ({"conversation": {"id": "conv_1"}}, "conversation", "send the whole conversation as 'input'"),
        ({"background": True}, "background", "leave it out"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt", "leave it out"),
        ({"truncation": "auto"}, "truncation", "leave it out"),
        ({"reasoning": {"summary": "auto"}}, "reasoning.summary", "leave it out"),
        ({"reasoning_effort": "low"}, "reasoning_effort", "leave it out"),
        ({"prompt_logprobs": 1}, "prompt_logprobs", "leave it out"),
        ({"echo": True}, "echo", "leave it out"),
        ({"text": {"verbosity": "low"}}, "text.verbosity", "leave it out"),
        ({"max_tokens": 5}, "max_tokens", "use 'max_output_tokens' instead"),
        ({"response_format": {"type": "json_object"}}, "response_format", "use 'text' instead"),
        ({"messages": [USER]}, "messages", "use 'input' instead"),
        ({"n": 2}, "n", "leave it out"),
        ({"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation", ""),
        ({"tools": [{**CLOCK, "defer_loading": True}]}, "tools[0].defer_loading", "leave it out"),
    ],
)
async def test_what_is_not_honoured_is_refused_by_name(fields: dict[str, object], param: str, says: str) -> None:
    async with serving() as served:
        error = await served.error(RESPONSES, responses(**fields))
        assert (error["status"], error["code"], error["param"]) == (400, "unsupported_parameter", param), error
        assert says in error["message"]
        assert served.engine.submitted == []


async def test_nothing_can_be_looked_up() -> None:
    async with serving() as served:
        answered = (await served.post(RESPONSES, responses())).json()
        assert (await served.client.get(f"{RESPONSES}/{answered['id']}")).status_code == 404
        assert (await served.client.get(RESPONSES)).status_code == 405


async def test_half_a_character_is_refused_wherever_it_would_be_shown() -> None:
    half = "\ud83d"
    async with serving() as served:
        for fields in (
            responses(half),
            responses(instructions=half),
            responses(metadata={"a": half}),
            responses(metadata={half: "a"}),
            responses([{**CALLED, "arguments": half}]),
            responses([{**OUT, "output": half}]),
            responses(tools=[{**CLOCK, "description": half}]),
            formatted(**{**FORMAT, "name": half}),
        ):
            content = json.dumps(fields)
            headers = {"content-type": "application/json"}
            response = await served.client.post(RESPONSES, content=content, headers=headers)
            assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_value"), fields
