"""Bad input, one row each: refused with 400 in OpenAI's shape, naming the field, and nothing reaches the engine."""

import gzip
import json
from typing import Any

import pytest

from server.engines.scripted.engine import ScriptedEngine
from server.openai.unsupported import IN_CHAT, IN_COMPLETION, IN_GENERATION, IN_RESPONSES
from tests.server.harness import CHAT, CHECKS, COMPLETIONS, MODEL, RESPONSES, chat, completion, responses, serving

pytestmark = pytest.mark.anyio


def message(**fields: object) -> dict[str, object]:
    return {"model": MODEL, "messages": [fields]}


def formatted(**fields: object) -> dict[str, object]:
    return chat(response_format=fields)


def structured(**fields: object) -> dict[str, object]:
    return chat(structured_outputs=fields)


def nested(levels: int) -> dict[str, object]:
    return {"not": nested(levels - 1)} if levels > 1 else {}


HI = {"type": "text", "text": "hi"}
THOUGHT = {"type": "thinking", "thinking": "hm", "signature": "s"}
NOT_TEXT: list[dict[str, object]] = [
    {"type": "image_url", "image_url": {"url": "http://x"}},
    {"type": "input_image", "image_url": "http://x"},
    {"type": "image", "source": {}},
    {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}},
    {"type": "video_url", "video_url": {"url": "http://x"}},
    {"type": "file", "file": {"file_id": "a"}},
    {"type": "tool_use", "id": "a", "name": "f", "input": {}},
    {"type": "TEXT", "text": "hi"},
    {"type": None, "text": "hi"},
    {"type": ["text"], "text": "hi"},
]

INVALID: list[tuple[str, dict[str, object], str | None, str]] = [
    # path, body, param, part of the message
    (CHAT, {}, "messages", "'messages' is missing."),
    (CHAT, {"model": MODEL}, "messages", "'messages' is missing."),
    (CHAT, chat(model=3), "model", "it should be a valid string; got 3."),
    (CHAT, chat(temperature="hot"), "temperature", "it should be a valid number; got the string 'hot'."),
    (CHAT, chat(temperature="0.5"), "temperature", "got the string '0.5'."),
    (CHAT, chat(temperature=True), "temperature", "got true."),
    (CHAT, chat(temperature=-0.1), "temperature", "greater than or equal to 0; got -0.1."),
    (CHAT, chat(temperature=2.1), "temperature", "less than or equal to 2; got 2.1."),
    (CHAT, chat(top_p=0), "top_p", "greater than 0"),
    (CHAT, chat(top_p=1.5), "top_p", "less than or equal to 1"),
    (CHAT, chat(n=0), "n", "greater than or equal to 1"),
    (CHAT, chat(n=1.0), "n", "valid integer"),
    (CHAT, chat(n=9), "n", "got 9, wanted at most 8."),
    (CHAT, chat(max_tokens=0), "max_tokens", "greater than or equal to 1"),
    (CHAT, chat(max_tokens="5"), "max_tokens", "valid integer; got the string '5'."),
    (CHAT, chat(max_tokens=10**30), "max_tokens", "got a larger integer."),
    (CHAT, chat(max_completion_tokens=0), "max_completion_tokens", "greater than or equal to 1"),
    (CHAT, chat(min_tokens=-1), "min_tokens", "greater than or equal to 0"),
    (CHAT, chat(min_tokens=1.5), "min_tokens", "valid integer"),
    (CHAT, chat(min_tokens=4, max_tokens=3), "min_tokens", "got 4, wanted at most the token limit, 3."),
    (CHAT, chat(min_tokens=4, max_completion_tokens=3), "min_tokens", "wanted at most the token limit, 3."),
    (CHAT, chat(top_k=-2), "top_k", "greater than or equal to -1"),
    (CHAT, chat(top_k=1.0), "top_k", "valid integer"),
    (CHAT, chat(top_k=True), "top_k", "valid integer; got true."),
    (CHAT, chat(min_p=-0.1), "min_p", "greater than or equal to 0"),
    (CHAT, chat(min_p=1.1), "min_p", "less than or equal to 1"),
    (CHAT, chat(frequency_penalty=-2.1), "frequency_penalty", "greater than or equal to -2"),
    (CHAT, chat(frequency_penalty=2.1), "frequency_penalty", "less than or equal to 2"),
    (CHAT, chat(frequency_penalty=False), "frequency_penalty", "valid number; got false."),
    (CHAT, chat(presence_penalty=-2.1), "presence_penalty", "greater than or equal to -2"),
    (CHAT, chat(presence_penalty=2.1), "presence_penalty", "less than or equal to 2"),
    (CHAT, chat(repetition_penalty=0), "repetition_penalty", "greater than or equal to 0.01"),
    (CHAT, chat(repetition_penalty=11), "repetition_penalty", "less than or equal to 10"),
    (CHAT, chat(repetition_penalty="1"), "repetition_penalty", "valid number"),
    (CHAT, chat(logit_bias=[[5, 1]]), "logit_bias", "it should be an object; got a list of 1."),
    (CHAT, chat(logit_bias={"5": 100.5}), "logit_bias[5]", "less than or equal to 100"),
    (CHAT, chat(logit_bias={"5": -100.5}), "logit_bias[5]", "greater than or equal to -100"),
    (CHAT, chat(logit_bias={"5": "1"}), "logit_bias[5]", "valid number"),
    (CHAT, chat(logit_bias={"5": None}), "logit_bias[5]", "valid number; got null."),
    (CHAT, chat(logit_bias={"cat": 1}), "logit_bias", "a token id in digits, unlike 'cat'"),
    (CHAT, chat(logit_bias={"-1": 1}), "logit_bias", "a token id in digits, unlike '-1'"),
    (CHAT, chat(logit_bias={"5.0": 1}), "logit_bias", "a token id in digits"),
    (CHAT, chat(logit_bias={"05": 1}), "logit_bias", "a token id in digits"),
    (CHAT, chat(logit_bias={"5\n": 1}), "logit_bias", "a token id in digits"),
    (CHAT, chat(logit_bias={"\u0665": 1}), "logit_bias", "a token id in digits"),
    (CHAT, chat(logit_bias={str(2**31): 1}), "logit_bias", "a token id in digits"),
    (CHAT, chat(logit_bias={"": 1}), "logit_bias", "a token id in digits, unlike ''"),
    (CHAT, chat(allowed_token_ids=[]), "allowed_token_ids", "at least 1 item"),
    (CHAT, chat(allowed_token_ids=5), "allowed_token_ids", "valid list"),
    (CHAT, chat(allowed_token_ids=[1, -1]), "allowed_token_ids[1]", "greater than or equal to 0"),
    (CHAT, chat(allowed_token_ids=[True]), "allowed_token_ids[0]", "valid integer; got true."),
    (CHAT, chat(stop_token_ids=["5"]), "stop_token_ids[0]", "valid integer; got the string '5'."),
    (CHAT, chat(stop_token_ids=[2**31]), "stop_token_ids[0]", "less than or equal to"),
    (CHAT, chat(stop_token_ids=[1] * 129), "stop_token_ids", "at most 128 items"),
    (CHAT, chat(logit_bias={str(token): 1 for token in range(1025)}), "logit_bias", "at most 1024 items"),
    (CHAT, chat(bad_words="no"), "bad_words", "valid list; got the string 'no'."),
    (CHAT, chat(bad_words=["no", ""]), "bad_words[1]", "at least 1 character"),
    (CHAT, chat(bad_words=["a" * 513]), "bad_words[0]", "at most 512 characters"),
    (CHAT, chat(ignore_eos=1), "ignore_eos", "valid boolean"),
    (CHAT, chat(include_stop_str_in_output="no"), "include_stop_str_in_output", "valid boolean"),
    (CHAT, chat(response_format="json"), "response_format", "it should be an object"),
    (CHAT, formatted(), "response_format.type", "is missing"),
    (CHAT, formatted(type="xml"), "response_format.type", "'text', 'json_object' or 'json_schema'"),
    (CHAT, formatted(type="text", schema={}), "response_format.schema", "is not a field"),
    (CHAT, formatted(type="json_schema"), "response_format.json_schema", "goes with 'type': 'json_schema'"),
    (
        CHAT,
        formatted(type="json_object", json_schema={"name": "a", "schema": {}}),
        "response_format.json_schema",
        "no other",
    ),
    (CHAT, formatted(type="json_schema", json_schema={"schema": {}}), "response_format.json_schema.name", "missing"),
    (CHAT, formatted(type="json_schema", json_schema={"name": "a"}), "response_format.json_schema.schema", "missing"),
    (
        CHAT,
        formatted(type="json_schema", json_schema={"name": "a", "schema": "{}"}),
        "response_format.json_schema.schema",
        "it should be an object, a JSON schema; got the string '{}'.",
    ),
    (CHAT, structured(), "structured_outputs", "exactly one of 'json', 'regex', 'choice', 'grammar'"),
    (CHAT, structured(json_object=False), "structured_outputs", "exactly one"),
    (CHAT, structured(regex="a", grammar="b"), "structured_outputs", "exactly one"),
    (CHAT, structured(json=[]), "structured_outputs.json", "it should be an object, a JSON schema; got a list of 0."),
    (CHAT, structured(json="[]"), "structured_outputs.json", "it should be an object, a JSON schema"),
    (CHAT, structured(json="{"), "structured_outputs.json", "an object as JSON text; got the string '{'."),
    (CHAT, structured(json="[" * 100_000), "structured_outputs.json", "an object as JSON text"),
    (CHAT, structured(json='{"minimum": NaN}'), "structured_outputs.json", "finite numbers only"),
    (CHAT, structured(json=nested(65)), "structured_outputs.json", "nested at most 64 levels deep"),
    (CHAT, structured(json='{"a": ' + "9" * 5000 + "}"), "structured_outputs.json", "an object as JSON text"),
    (CHAT, structured(schema_text="{}"), "structured_outputs.schema_text", "is not a field"),
    (CHAT, structured(regex=""), "structured_outputs.regex", "at least 1 character"),
    (CHAT, structured(grammar={}), "structured_outputs.grammar", "valid string"),
    (CHAT, structured(choice=[]), "structured_outputs.choice", "at least 1 item"),
    (CHAT, structured(choice=["a", ""]), "structured_outputs.choice[1]", "at least 1 character"),
    (CHAT, structured(choice="a"), "structured_outputs.choice", "valid list"),
    (CHAT, structured(json_object=1), "structured_outputs.json_object", "valid boolean"),
    (
        CHAT,
        {**structured(regex="a"), "response_format": {"type": "json_object"}},
        "structured_outputs",
        "send one of them",
    ),
    (CHAT, chat(seed=-(2**63) - 1), "seed", "greater than or equal to"),
    (CHAT, chat(seed=2**63), "seed", "less than or equal to"),
    (CHAT, chat(seed=-1.0), "seed", "valid integer"),
    (CHAT, chat(seed="x"), "seed", "valid integer"),
    (CHAT, chat(stop=5), "stop", "a string or a list of up to 4 strings; got 5."),
    (CHAT, chat(stop=["a", "b", "c", "d", "e"]), "stop", "'stop': it should have at most 4 items; got a list of 5."),
    (CHAT, chat(stop=["a", 1]), "stop[1]", "valid string"),
    (CHAT, chat(stop=""), "stop[0]", "at least 1 character"),
    (CHAT, chat(stream="yes"), "stream", "valid boolean"),
    (CHAT, chat(stream_options={"include_usage": True}), "stream_options", "together with 'stream': true"),
    (CHAT, chat(stream=True, stream_options={"x": 1}), "stream_options.x", "is not a field"),
    (CHAT, chat(stream=True, stream_options=[]), "stream_options", "it should be an object; got a list of 0."),
    (CHAT, chat(logprobs=3), "logprobs", "valid boolean; got 3."),
    (CHAT, chat(top_logprobs=3), "top_logprobs", "together with 'logprobs': true"),
    (CHAT, chat(logprobs=True, top_logprobs=21), "top_logprobs", "less than or equal to 20"),
    (CHAT, chat(frobnicate=1), "frobnicate", "'frobnicate' is not a field of this request; leave it out."),
    (CHAT, chat(frobnicate=[]), "frobnicate", "is not a field"),
    (CHAT, chat(**{"x" * 5000: 1}), f"{'x' * 40}...", f"'{'x' * 40}...' is not a field of this request"),
    (CHAT, chat(user=5), "user", "valid string"),
    (CHAT, {"model": MODEL, "messages": []}, "messages", "it should have at least 1 item; got a list of 0."),
    (CHAT, {"model": MODEL, "messages": "hi"}, "messages", "valid list; got the string 'hi'."),
    (CHAT, {"model": MODEL, "messages": ["hi"]}, "messages[0]", "it should be an object"),
    (
        CHAT,
        message(role="robot", content="x"),
        "messages[0].role",
        "'system', 'developer', 'user', 'assistant', 'tool' or 'function'",
    ),
    (CHAT, message(content="x"), "messages[0].role", "is missing"),
    (CHAT, message(role="user"), "messages[0].content", "Each message needs 'content'"),
    (CHAT, message(role="user", content=None), "messages[0].content", "Each message needs 'content'"),
    (CHAT, message(role="user", content=5), "messages[0].content", "a string or a list of text parts; got 5."),
    (CHAT, message(role="user", content={}), "messages[0].content", "a string or a list of text parts"),
    (CHAT, message(role="user", content=["x"]), "messages[0].content[0]", "it should be an object"),
    *((CHAT, message(role="user", content=[HI, part]), "messages[0].content[1].type", "only text is supported")
      for part in NOT_TEXT),
    (CHAT, message(role="user", content=[{"text": "x"}]), "messages[0].content[0].type", "is missing"),
    (CHAT, message(role="user", content=[{"type": "text"}]), "messages[0].content[0].text", "needs 'text', a string"),
    (CHAT, message(role="user", content=[{**HI, "text": 1}]), "messages[0].content[0].text", "valid string"),
    (CHAT, message(role="user", content=[{**HI, "text": None}]), "messages[0].content[0].text", "a string"),
    (CHAT, message(role="user", content=[{**HI, "type": "refusal"}]), "messages[0].content[0].refusal", "a string"),
    (CHAT, message(role="user", content=[THOUGHT]), "messages[0].content", "Only an assistant's"),
    (CHAT, message(role="user", content="x", refusal="y"), "messages[0].refusal", "assistant's message"),
    (CHAT, message(role="tool", content=None, tool_call_id="a"), "messages[0].content", "needs 'content'"),
    (COMPLETIONS, {"model": MODEL}, "prompt", "'prompt' is missing."),
    (COMPLETIONS, completion(None), "prompt", "non-empty string or a non-empty list of token ids; got null."),
    (COMPLETIONS, completion(""), "prompt", "non-empty string"),
    (COMPLETIONS, completion([]), "prompt", "non-empty string"),
    (COMPLETIONS, completion(["a", ""]), "prompt", "non-empty string"),
    (COMPLETIONS, completion([[1], []]), "prompt", "non-empty string"),
    (COMPLETIONS, completion([1, "a"]), "prompt", "non-empty string"),
    (COMPLETIONS, completion([1, True]), "prompt", "non-empty string"),
    (COMPLETIONS, completion([-1]), "prompt", "non-empty string"),
    (COMPLETIONS, completion([2**31]), "prompt", "non-empty string"),
    (COMPLETIONS, completion({"text": "a"}), "prompt", "got an object."),
    (COMPLETIONS, completion(["a"] * 9), "n", "got 9, wanted at most 8."),
    (COMPLETIONS, completion(["a"] * 5, n=2), "n", "got 10, wanted at most 8."),
    (COMPLETIONS, completion(logprobs=21), "logprobs", "less than or equal to 20"),
    (COMPLETIONS, completion(logprobs=True), "logprobs", "valid integer"),
    (COMPLETIONS, completion(min_tokens=4, max_tokens=3), "min_tokens", "wanted at most the token limit, 3."),
    (COMPLETIONS, completion(top_k="all"), "top_k", "valid integer"),
    (COMPLETIONS, completion(structured_outputs={}), "structured_outputs", "exactly one"),
    (COMPLETIONS, completion(messages=[]), "messages", "is not a field"),
    (COMPLETIONS, completion(max_completion_tokens=3), "max_completion_tokens", "is not a field"),
    (CHECKS, {"model": MODEL}, "prompt", "Send either 'prompt' or 'messages'."),
    (CHECKS, completion(messages=[{"role": "user", "content": "x"}]), "prompt", "Send either"),
    (CHECKS, completion(["a", "b"]), "prompt", "non-empty list of token ids"),
    (CHECKS, completion(temperature=0), "temperature", "is not a field"),
    (CHECKS, completion(tools=[]), "tools", "is not a field"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body", "param", "says"), INVALID)
async def test_invalid_field(path: str, body: dict[str, object], param: str | None, says: str) -> None:
    async with serving() as served:
        error = await served.error(path, body)
        assert (error["status"], error["type"]) == (400, "invalid_request_error")
        assert (error["code"], error["param"]) == ("invalid_value", param)
        assert says in error["message"]
        assert served.engine.submitted == []


UNSUPPORTED: list[tuple[str, dict[str, object], str]] = [
    *((CHAT, chat(**{name: "other"}), name) for name, neutral in IN_CHAT.items() if neutral is not None),
    *((COMPLETIONS, completion(**{name: "x"}), name) for name, neutral in IN_COMPLETION.items() if neutral is not None),
    *((RESPONSES, responses(**{name: "x"}), name) for name, neutral in IN_RESPONSES.items() if neutral is not None),
    (COMPLETIONS, completion(tools=[{"type": "function"}]), "tools"),
    (COMPLETIONS, completion(tool_choice="required"), "tool_choice"),
    (COMPLETIONS, completion(add_special_tokens=False), "add_special_tokens"),
    (CHAT, chat(add_special_tokens=True), "add_special_tokens"),
    (CHAT, chat(best_of=2), "best_of"),
    (CHAT, chat(best_of=True), "best_of"),
    (CHAT, chat(modalities=["text", "audio"]), "modalities"),
    (CHAT, chat(service_tier="flex"), "service_tier"),
    (CHAT, chat(priority=False), "priority"),
    (CHAT, chat(verbosity="low"), "verbosity"),
    (CHAT, chat(include_reasoning=False), "include_reasoning"),
    (CHAT, message(role="assistant", content="x", audio={"id": "a"}), "messages[0].audio"),
    (CHAT, message(role="user", content="x", images=["aGk="]), "messages[0].images"),
    (CHAT, message(role="assistant", content="x", prefix=True), "messages[0].prefix"),
    (CHECKS, message(role="user", content="x", images=["aGk="]), "messages[0].images"),
    (CHAT, chat(stream=True, stream_options={"include_obfuscation": True}), "stream_options.include_obfuscation"),
    (CHAT, chat(echo=True), "echo"),
    (COMPLETIONS, completion(suffix="x"), "suffix"),
    (COMPLETIONS, completion(best_of=2), "best_of"),
    (COMPLETIONS, completion(best_of=1, n=2), "best_of"),
    (CHAT, structured(regex="a", whitespace_pattern=" "), "structured_outputs.whitespace_pattern"),
    (CHAT, structured(regex="a", disable_any_whitespace=True), "structured_outputs.disable_any_whitespace"),
    (CHAT, structured(structural_tag="{}"), "structured_outputs.structural_tag"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body", "param"), UNSUPPORTED)
async def test_option_that_is_not_honoured(path: str, body: dict[str, object], param: str) -> None:
    async with serving() as served:
        error = await served.error(path, body)
        assert (error["status"], error["type"]) == (400, "invalid_request_error")
        assert (error["code"], error["param"]) == ("unsupported_parameter", param)
        assert served.engine.submitted == []


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        *((name, "use 'structured_outputs' instead") for name in IN_GENERATION if name.startswith("guided_")),
        ("functions", "use 'tools' instead"),
        ("function_call", "use 'tools' and 'tool_choice' instead"),
        ("suffix", "leave it out"),
    ],
)
async def test_older_name_leads_to_the_newer(name: str, instead: str) -> None:
    async with serving() as served:
        assert instead in (await served.error(CHAT, chat(**{name: "x"})))["message"]


@pytest.mark.parametrize(
    ("content", "content_type", "status", "says"),
    [
        (b"{", "application/json", 400, "not valid JSON: Expecting property name"),
        (b'{"a": 1,}', "application/json", 400, "not valid JSON"),
        (b"", "application/json", 400, "The body is empty"),
        (b'"\xff"', "application/json", 400, "not valid JSON in UTF-8"),
        (b"[" * 100_000, "application/json", 400, "not valid JSON"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "application/json", 400, "not valid JSON"),
        (b"[1]", "application/json", 400, "The body: it should be an object; got a list of 1."),
        (b'"hi"', "application/json", 400, "it should be an object; got the string 'hi'."),
        (b"null", "application/json", 400, "The body"),
        (json.dumps(chat(temperature=float("nan"))).encode(), "application/json", 400, "finite number"),
        (json.dumps(chat("\ud800")).encode(), "application/json", 400, "lone surrogates"),
        (json.dumps(structured(json={"const": "\ud800"})).encode(), "application/json", 400, "lone surrogates"),
        (json.dumps(structured(json={"const": float("nan")})).encode(), "application/json", 400, "finite numbers"),
        (json.dumps(chat(logit_bias={"\ud800": 1})).encode(), "application/json", 400, "a token id in digits"),
        (json.dumps(chat(model="\ud800")).encode(), "application/json", 400, "lone surrogates"),
        (json.dumps(chat()).encode(), "text/plain", 415, "Content-Type: application/json"),
        (json.dumps(chat()).encode(), "", 415, "Content-Type: application/json"),
        (b"model=scripted", "application/x-www-form-urlencoded", 415, "Content-Type"),
    ],
)
async def test_body_that_is_not_a_json_object(content: bytes, content_type: str, status: int, says: str) -> None:
    async with serving() as served:
        headers = {"content-type": content_type} if content_type else {}
        response = await served.client.post(CHAT, content=content, headers=headers)
        assert response.status_code == status
        error = response.json()["error"]
        assert says in error["message"]
        assert error["type"] == "invalid_request_error"
        assert served.engine.submitted == []


@pytest.mark.parametrize("encoding", ["gzip", "GZIP", "br", "gzip, identity"])
async def test_a_compressed_body(encoding: str) -> None:
    async with serving() as served:
        packed, headers = gzip.compress(json.dumps(chat()).encode()), {"content-type": "application/json"}
        response = await served.client.post(CHAT, content=packed, headers={**headers, "content-encoding": encoding})
        assert (response.status_code, response.json()["error"]["code"]) == (415, "unsupported_media_type")
        assert "compressed (Content-Encoding); send it as it is" in response.json()["error"]["message"]
        assert (await served.post(CHAT, chat(), **{"content-encoding": "identity"})).status_code == 200


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, RESPONSES, CHECKS])
async def test_other_model(path: str) -> None:
    async with serving() as served:
        bodies = {CHAT: chat(), RESPONSES: responses()}
        body = {**bodies.get(path, completion()), "model": "gpt-4"}
        error = await served.error(path, body)
        assert (error["status"], error["code"], error["param"]) == (404, "model_not_found", "model")
        assert "'gpt-4'" in error["message"]
        assert "'scripted'" in error["message"]


@pytest.mark.parametrize(
    ("path", "body", "code"),
    [
        (COMPLETIONS, completion("x" * 65), "context_length_exceeded"),
        (COMPLETIONS, completion("x" * 60, max_tokens=5), "context_length_exceeded"),
        (CHAT, chat("x" * 60), "context_length_exceeded"),
        (RESPONSES, responses("x" * 60), "context_length_exceeded"),
        (CHECKS, completion("x" * 65), "context_length_exceeded"),
        (COMPLETIONS, completion([7, 256]), "invalid_prompt"),
    ],
)
async def test_prompt_that_the_engine_refuses(path: str, body: dict[str, Any], code: str) -> None:
    async with serving(ScriptedEngine(max_model_tokens=64)) as served:
        for extra in {}, {"stream": True}:
            error = await served.error(path, body if path == CHECKS else {**body, **extra})
            assert (error["status"], error["code"]) == (400, code)


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/", 404, "unknown_url"),
        ("GET", "/docs", 404, "unknown_url"),
        ("GET", "/redoc", 404, "unknown_url"),
        ("POST", "/v1/embeddings", 404, "unknown_url"),
        ("GET", "/v1/models/", 404, "model_not_found"),
        ("GET", "/v1/models/other/one", 404, "model_not_found"),
        ("GET", "/ready/", 404, "unknown_url"),
        ("GET", CHAT, 405, "method_not_allowed"),
        ("DELETE", "/v1/models/scripted", 405, "method_not_allowed"),
        ("PUT", "/metrics", 405, "method_not_allowed"),
        ("BREW", COMPLETIONS, 405, "method_not_allowed"),
    ],
)
async def test_wrong_path_or_method(method: str, path: str, status: int, code: str) -> None:
    async with serving() as served:
        response = await served.client.request(method, path)
        assert (response.status_code, response.json()["error"]["code"]) == (status, code)
        if status == 405:
            assert response.headers["allow"]
