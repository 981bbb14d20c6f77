"""The Responses API, whole: what becomes of a request, and of its answer in every ending."""

from collections.abc import Mapping
from typing import Any

import pytest
from openai.types.responses import Response

from guards.core.verdict import GuardMode, Stage
from server.engines.errors import InvalidOptionError
from server.engines.events import Chunk as Piece
from server.engines.events import Finish, FinishReason, TokenLogprob
from server.engines.request import COMMON_OPTIONS, Grammar, GrammarKind, Message, Sampling, SamplingDefaults
from server.engines.scripted.engine import ScriptedEngine
from server.engines.scripted.scripts import Script, abstention, answer, guard, hit
from server.engines.tools import Tool, ToolCall, ToolChoice, ToolUse
from tests.server.harness import CHAT, MODEL, RESPONSES, chat, responses, serving
from tests.server.test_abstention import TEXT, USER_GUARD
from tests.server.test_abstention import engine as abstaining
from tests.server.test_options import OPTIONS

pytestmark = pytest.mark.anyio

SCHEMA = {"type": "object", "title": "é"}
CLOCK: dict[str, Any] = {"type": "function", "name": "clock"}
WEATHER: dict[str, Any] = {
    "type": "function",
    "name": "weather",
    "description": "Looks out.",
    "parameters": SCHEMA,
    "strict": True,
}
LOGPROBS = "message.output_text.logprobs"


def engine(*pieces: str, reason: FinishReason = FinishReason.STOP, **settings: Any) -> ScriptedEngine:
    return ScriptedEngine([Script(answer(*pieces, reason=reason))], **settings)


def said(body: dict[str, Any]) -> list[Any]:
    """The output without ids."""
    return [{key: value for key, value in item.items() if key != "id"} for item in body["output"]]


def message(*parts: Mapping[str, object], status: str = "completed") -> dict[str, object]:
    return {"type": "message", "role": "assistant", "status": status, "content": list(parts)}


def text(text: str) -> dict[str, object]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def call(name: str, arguments: str, id: str, status: str = "completed") -> dict[str, object]:
    return {"type": "function_call", "call_id": id, "name": name, "arguments": arguments, "status": status}


async def test_answer() -> None:
    async with serving(engine("Hello", ".", defaults=SamplingDefaults(temperature=0.25))) as served:
        body = (await served.post(RESPONSES, responses(metadata={"a": "b"}, instructions="Sing.", top_p=0.5))).json()
        Response.model_validate(body, strict=True)
        assert body.pop("id").startswith("resp_")
        assert body["output"][0].pop("id").startswith("msg_")
        assert isinstance(body.pop("created_at"), int)
        assert body == {
            "object": "response",
            "status": "completed",
            "error": None,
            "incomplete_details": None,
            "model": MODEL,
            "output": [message(text("Hello."))],
            "instructions": "Sing.",
            "max_output_tokens": None,
            "temperature": 0.25,
            "top_p": 0.5,
            "text": {"format": {"type": "text"}},
            "tools": [],
            "tool_choice": "auto",
            "reasoning": {"effort": None, "summary": None},
            "parallel_tool_calls": True,
            "metadata": {"a": "b"},
            "background": False,
            "previous_response_id": None,
            "store": False,
            "truncation": "disabled",
            "usage": {
                "input_tokens": 34,
                "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
                "output_tokens": 2,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": 36,
            },
        }
        expected = served.engine.encode_chat([Message("system", "Sing."), Message("user", "hi")])
        assert served.engine.submitted[0].prompt_token_ids == expected


OUT = {"type": "function_call_output", "call_id": "a", "output": "noon"}
CALLED = call("clock", '{"city": "Rome"}', "a")
CALL = ToolCall("a", "clock", '{"city": "Rome"}')
USER, HI = {"role": "user", "content": "hi"}, Message("user", "hi")
INPUTS: dict[str, tuple[object, list[Message]]] = {
    "text": ("hi", [HI]),
    "no text": ("", [Message("user", "")]),
    "messages": (
        [
            {"role": "system", "content": "a"},
            {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "b"}]},
            {"type": None, **USER},
        ],
        [Message("system", "a"), Message("system", "b"), HI],
    ),
    "an answer of ours": (
        [USER, {"id": "msg_1", **message({**text("no"), "parsed": None}), "phase": None}, USER],
        [HI, Message("assistant", "no"), HI],
    ),
    "a refusal": (
        [USER, message(text("Take"), {"type": "refusal", "refusal": TEXT}), USER],
        [HI, Message("assistant", f"Take\n{TEXT}"), HI],
    ),
    "a call": (
        [USER, {"id": "fc_1", **CALLED, "parsed_arguments": {}, "namespace": None}, {"id": "x", **OUT}],
        [HI, Message("assistant", "", (CALL,)), Message("tool", "noon", tool_call_id="a")],
    ),
    "calls behind text": (
        [USER, message(text("Look: ")), CALLED, {**CALLED, "call_id": "b"}, OUT, {**OUT, "call_id": "b"}],
        [
            HI,
            Message("assistant", "Look: ", (CALL, ToolCall("b", "clock", CALL.arguments))),
            Message("tool", "noon", tool_call_id="a"),
            Message("tool", "noon", tool_call_id="b"),
        ],
    ),
    "calls one by one": (
        [CALLED, OUT, {**CALLED, "call_id": "b"}, message(text("Ah."))],
        [
            Message("assistant", "", (CALL,)),
            Message("tool", "noon", tool_call_id="a"),
            Message("assistant", "", (ToolCall("b", "clock", CALL.arguments),)),
            Message("assistant", "Ah."),
        ],
    ),
    "a call cut short": (
        [{**CALLED, "arguments": '{"ci', "status": "incomplete"}],
        [Message("assistant", "", (ToolCall("a", "clock", '{"arguments": "{\\"ci"}'),))],
    ),
    "a result in parts": (
        [{**OUT, "output": [{"type": "input_text", "text": "no"}, {"type": "input_text", "text": "on"}]}],
        [Message("tool", "no\non", tool_call_id="a")],
    ),
    "reasoning": (
        [USER, {"type": "reasoning", "id": "rs_1", "summary": [{"text": "hm"}], "encrypted_content": "x"}, CALLED],
        [HI, Message("assistant", "", (CALL,))],
    ),
}


@pytest.mark.parametrize("name", INPUTS)
async def test_conversation(name: str) -> None:
    given, shown = INPUTS[name]
    async with serving() as served:
        response = await served.post(RESPONSES, responses(given))
        assert response.status_code == 200, response.text
        assert served.engine.submitted[0].prompt_token_ids == served.engine.encode_chat(shown)
        with_instructions = await served.post(RESPONSES, responses(given, instructions="Sing."))
        assert with_instructions.status_code == 200
        expected = served.engine.encode_chat([Message("system", "Sing."), *shown])
        assert served.engine.submitted[1].prompt_token_ids == expected
        await served.post(RESPONSES, responses(given, instructions=""))
        assert served.engine.submitted[2].prompt_token_ids == served.engine.submitted[0].prompt_token_ids


@pytest.mark.parametrize(("field", "value", "asked"), [each for each in OPTIONS if each[0] != "prompt_logprobs"])
async def test_option_reaches_the_engine(field: str, value: Any, asked: dict[str, Any]) -> None:
    """As it does from a chat, and is refused by the caller's name for it where it is not honoured."""
    param = field
    if field == "response_format":
        value = {"format": {"type": value["type"], **value.get("json_schema", {})}}
        field, param = "text", "text.format"
    body = responses(max_output_tokens=512, **{field: value})
    async with serving() as served:
        response = await served.post(RESPONSES, body)
        assert response.status_code == 200, response.text
        assert served.engine.submitted[-1].sampling == Sampling(512, **asked)
        Response.model_validate(response.json(), strict=True)
        if field == "text":
            shown = response.json()["text"]["format"]
            assert shown == {"strict": None, **value["format"]} if "schema" in shown else value["format"]
    async with serving(ScriptedEngine(options=COMMON_OPTIONS)) as served:
        error = await served.error(RESPONSES, body)
        assert (error["status"], error["code"], error["param"]) == (400, "unsupported_parameter", param)


async def test_value_that_the_engine_cannot_work_with() -> None:
    scripted = engine()
    asked = {"text": {"format": {"type": "json_object"}}}
    async with serving(scripted) as served:
        for option, fields, param in (
            ("grammar", asked, "text.format"),
            ("grammar", {"structured_outputs": {"regex": "("}}, "structured_outputs"),
            ("logprobs", {}, "include"),
            ("max_tokens", {}, "max_output_tokens"),
        ):
            scripted.invalid = InvalidOptionError("no", option)
            error = await served.error(RESPONSES, responses(**fields))
            assert (error["status"], error["code"], error["param"]) == (400, "invalid_value", param)


async def test_temperature_and_seed_are_the_callers() -> None:
    async with serving() as served:
        body = responses(temperature=0, top_p=0.5, seed=7, max_output_tokens=3)
        answered = (await served.post(RESPONSES, body)).json()
        assert served.engine.submitted[0].sampling == Sampling(3, temperature=0, top_p=0.5, seed=7)
        assert (answered["temperature"], answered["top_p"], answered["max_output_tokens"]) == (0, 0.5, 3)


CHOICES: list[tuple[dict[str, object], ToolChoice, str | None, bool]] = [
    ({}, ToolChoice.AUTO, None, True),
    ({"tool_choice": "auto", "parallel_tool_calls": False}, ToolChoice.AUTO, None, False),
    ({"tool_choice": "required"}, ToolChoice.REQUIRED, None, True),
    ({"tool_choice": {"type": "function", "name": "clock"}}, ToolChoice.NAMED, "clock", True),
]


@pytest.mark.parametrize(("fields", "choice", "name", "parallel"), CHOICES)
async def test_tools(fields: dict[str, object], choice: ToolChoice, name: str | None, parallel: bool) -> None:
    scripted = engine('Look: [[clock|{"a": 1}]][[weather|{}]]')
    async with serving(scripted) as served:
        body = (await served.post(RESPONSES, responses(tools=[WEATHER, CLOCK], **fields))).json()
        Response.model_validate(body, strict=True)
        tools = (Tool("weather", "Looks out.", SCHEMA, strict=True), Tool("clock"))
        assert scripted.tool_uses == [ToolUse(tools, choice, name, parallel)]
        assert scripted.submitted[0].prompt_token_ids == scripted.encode_chat([HI], tools)
        assert said(body) == [
            message(text("Look: ")),
            call("clock", '{"a": 1}', "call_0"),
            call("weather", "{}", "call_1"),
        ]
        assert [item["id"].partition("_")[0] for item in body["output"]] == ["msg", "fc", "fc"]
        assert body["status"] == "completed"
        assert body["tools"] == [WEATHER, {**CLOCK, "description": None, "parameters": None, "strict": None}]
        assert body["tool_choice"] == fields.get("tool_choice", "auto")
        assert body["parallel_tool_calls"] is parallel


async def test_where_nothing_may_be_called_no_tool_is_shown() -> None:
    async with serving(engine("[[clock|{}]]")) as served:
        nothing: list[dict[str, object]] = [
            {"tools": [CLOCK], "tool_choice": "none"},
            {"tools": []},
            {"tool_choice": "none"},
        ]
        for fields in nothing:
            body = (await served.post(RESPONSES, responses(**fields))).json()
            assert said(body) == [message(text("[[clock|{}]]"))]
            assert served.engine.submitted[-1].prompt_token_ids == served.engine.encode_chat([HI])
        assert served.engine.tool_uses == []


async def test_engine_without_tools() -> None:
    async with serving(ScriptedEngine(tool_choices=frozenset())) as served:
        for body, param in (
            (responses(tools=[CLOCK]), "tools"),
            (responses(tools=[CLOCK], tool_choice="none"), "tools"),
            (responses([USER, CALLED]), "input[1].type"),
            (responses([OUT]), "input[0].type"),
            (responses([USER, {"role": "tool", "content": "x", "tool_call_id": "a"}]), "input[1].role"),
        ):
            error = await served.error(RESPONSES, body)
            assert (error["status"], error["code"], error["param"]) == (400, "unsupported_parameter", param)
        assert served.engine.submitted == []


@pytest.mark.parametrize(
    ("written", "output"),
    [
        ("Hel", [message(text("Hel"), status="incomplete")]),
        ("", [message(text(""), status="incomplete")]),
        ("Hm [[clock|{", [message(text("Hm ")), call("clock", "{", "call_0", "incomplete")]),
        (
            "[[clock|{}]][[clock|{",
            [call("clock", "{}", "call_0"), call("clock", "{", "call_1", "incomplete")],
        ),
    ],
)
async def test_length(written: str, output: list[object]) -> None:
    async with serving(engine(written, reason=FinishReason.LENGTH)) as served:
        body = (await served.post(RESPONSES, responses(tools=[CLOCK]))).json()
        Response.model_validate(body, strict=True)
        assert (body["status"], body["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
        assert said(body) == output
        assert "guard" not in body


@pytest.mark.parametrize("question", ["cook", "later"])
@pytest.mark.parametrize("tools", [[], [CLOCK]])
async def test_abstention(question: str, tools: list[object]) -> None:
    """Its text is there once, and nothing that the model wrote."""
    shown = {**USER_GUARD, "stage": "prompt" if question == "cook" else "generation"}
    async with serving(abstaining(), abstain_text=TEXT) as served:
        body = (await served.post(RESPONSES, responses(question, tools=tools))).json()
        Response.model_validate(body, strict=True)
        assert (body["status"], body["incomplete_details"]) == ("incomplete", {"reason": "content_filter"})
        assert said(body) == [message(text(TEXT), status="incomplete")]
        assert (body["guard"], body["usage"]["output_tokens"]) == (shown, 1 if question == "cook" else 3)
    async with serving(abstaining(), abstain_style="refusal", abstain_text=TEXT) as served:
        body = (await served.post(RESPONSES, responses(question, tools=tools))).json()
        Response.model_validate(body, strict=True)
        assert (body["status"], body["incomplete_details"]) == ("completed", None)
        assert said(body) == [message({"type": "refusal", "refusal": TEXT})]
        assert body["guard"] == shown
    async with serving(abstaining(), abstain_style="error") as served:
        error = await served.error(RESPONSES, responses(question, tools=tools))
        assert (error["status"], error["code"], error["guard"]) == (400, "skill_abstained", shown)


async def test_an_abstained_answer_calls_nothing() -> None:
    steps = abstention(hit(guard(), Stage.GENERATION), "Look: ", "[[clock|{}]]", "[[clock|")
    for style in "content_filter", "refusal":
        async with serving(ScriptedEngine([Script(steps)]), abstain_style=style) as served:
            response = await served.post(RESPONSES, responses(tools=[CLOCK]))
            assert [item["type"] for item in response.json()["output"]] == ["message"]
            assert "call_0" not in response.text


async def test_a_guard_that_watches_changes_nothing() -> None:
    steps = answer("Hello", ".", hits=(hit(guard(), mode=GuardMode.SHADOW),))
    async with serving(ScriptedEngine([Script(steps)]), shadow=("demo",)) as served:
        body = (await served.post(RESPONSES, responses())).json()
        assert (said(body), "guard" in body) == ([message(text("Hello."))], False)


@pytest.mark.parametrize(
    ("finish", "code"),
    [
        (Finish(FinishReason.ERROR, 0, 1, verified=True, error="CUDA"), "engine_error"),
        (Finish(FinishReason.STOP, 0, 1, verified=False), "guard_error"),
    ],
)
async def test_what_no_guard_read_is_not_sent(finish: Finish, code: str) -> None:
    async with serving(ScriptedEngine([Script((Piece("eggs", 1), finish))])) as served:
        response = await served.post(RESPONSES, responses())
        assert (response.status_code, response.json()["error"]["code"]) == (500, code)
        assert "eggs" not in response.text


async def test_metrics_and_audit_are_those_of_a_chat(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "skillguard")
    async with serving(abstaining()) as served:
        for path, body in ((CHAT, chat("cook")), (RESPONSES, responses("cook"))):
            caplog.clear()
            await served.post(path, body, **{"x-request-id": "mine"})
            assert "mine key=anonymous guard=demo skill=cooking" in caplog.text
            assert f"mine {path} 200" in caplog.text
        assert served.engine.submitted[0].policy == served.engine.submitted[1].policy
        labels = '{method="ksd",skill="cooking",stage="prompt"}'
        assert await served.metric(f"skillguard_abstentions_total{labels}") == 2
        assert await served.metric("skillguard_verified_requests_total") == 2


async def test_a_server_that_is_not_ready_answers_nothing() -> None:
    scripted = ScriptedEngine()
    scripted.verification = {"demo": "no"}
    async with serving(scripted) as served:
        assert (await served.error(RESPONSES, responses()))["status"] == 503
        assert scripted.submitted == []


async def test_logprobs() -> None:
    drawn = TokenLogprob("Hi", b"Hi", -0.5, (("Hi", b"Hi", -0.5),))
    steps = (Piece("Hi", 1, (drawn,)), Finish(FinishReason.STOP, 0, 1, verified=True))
    shown = {"token": "Hi", "logprob": -0.5, "bytes": [72, 105]}
    async with serving(ScriptedEngine([Script(steps)])) as served:
        body = (await served.post(RESPONSES, responses(include=[LOGPROBS], top_logprobs=1))).json()
        Response.model_validate(body, strict=True)
        assert body["output"][0]["content"][0]["logprobs"] == [{**shown, "top_logprobs": [shown]}]
        assert served.engine.submitted[0].sampling.logprobs == 1
        without: list[dict[str, object]] = [
            {"include": []},
            {"include": ["reasoning.encrypted_content"]},
            {"top_logprobs": 0},
        ]
        for fields in without:
            await served.post(RESPONSES, responses(**fields))
            assert served.engine.submitted[-1].sampling.logprobs is None
        await served.post(RESPONSES, responses(include=[LOGPROBS]))
        assert served.engine.submitted[-1].sampling.logprobs == 0


async def test_abstained_answer_shows_no_logprobs() -> None:
    drawn = TokenLogprob("eggs", b"eggs", -0.1)
    finish = Finish(FinishReason.ABSTAIN, 0, 2, verified=True, hits=(hit(guard(), Stage.GENERATION),))
    async with serving(ScriptedEngine([Script((Piece("eggs", 1, (drawn,)), finish))])) as served:
        response = await served.post(RESPONSES, responses(include=[LOGPROBS]))
        assert response.json()["output"][0]["content"][0]["logprobs"] == []
        assert "eggs" not in response.text


async def test_grammar_of_a_text_format() -> None:
    async with serving() as served:
        await served.post(RESPONSES, responses(text={"format": {"type": "text"}}, structured_outputs={"regex": "a"}))
        assert served.engine.submitted[0].sampling.grammar == Grammar(GrammarKind.REGEX, "a")
