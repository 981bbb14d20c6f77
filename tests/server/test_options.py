"""The options that not every engine honours: what they become, and who is told that they would not hold."""

from typing import Any

import pytest

from server.engines.request import ALL_OPTIONS, COMMON_OPTIONS, Grammar, GrammarKind, Sampling
from server.engines.scripted.engine import ScriptedEngine
from tests.server.harness import CHAT, COMPLETIONS, chat, completion, serving

pytestmark = pytest.mark.anyio

SCHEMA = {"type": "object", "title": "\u00e9"}
SCHEMA_TEXT = '{"type": "object", "title": "\u00e9"}'
WRAPPED = {"name": "n", "schema": SCHEMA, "strict": True, "description": "for me"}


def matching(kind: GrammarKind, text: str = "") -> dict[str, Any]:
    return {"grammar": Grammar(kind, text)}


OPTIONS: list[tuple[str, object, dict[str, Any]]] = [
    # the request's field, its value, what differs in Sampling
    ("top_k", 5, {"top_k": 5}),
    ("prompt_logprobs", 3, {"prompt_logprobs": 3}),
    ("min_p", 0.25, {"min_p": 0.25}),
    ("min_p", 1, {"min_p": 1.0}),
    ("frequency_penalty", -2, {"frequency_penalty": -2.0}),
    ("presence_penalty", 2.0, {"presence_penalty": 2.0}),
    ("repetition_penalty", 0.5, {"repetition_penalty": 0.5}),
    ("repetition_penalty", 3, {"repetition_penalty": 3.0}),
    ("logit_bias", {"0": -100, "5": 100, "2147483647": 0.5}, {"logit_bias": {0: -100.0, 5: 100.0, 2147483647: 0.5}}),
    ("logit_bias", {str(token): 1 for token in range(1024)}, {"logit_bias": dict.fromkeys(range(1024), 1.0)}),
    ("allowed_token_ids", [5, 0], {"allowed_token_ids": (5, 0)}),
    ("bad_words", ["no", "never"], {"bad_words": ("no", "never")}),
    ("min_tokens", 512, {"min_tokens": 512}),
    ("ignore_eos", True, {"ignore_eos": True}),
    ("stop_token_ids", [5], {"stop_token_ids": (5,)}),
    ("include_stop_str_in_output", True, {"include_stop": True}),
    ("response_format", {"type": "json_object"}, matching(GrammarKind.JSON_OBJECT)),
    (
        "response_format",
        {"type": "json_schema", "json_schema": WRAPPED},
        matching(GrammarKind.JSON_SCHEMA, SCHEMA_TEXT),
    ),
    ("structured_outputs", {"json": SCHEMA}, matching(GrammarKind.JSON_SCHEMA, SCHEMA_TEXT)),
    ("structured_outputs", {"json": SCHEMA_TEXT, "regex": None}, matching(GrammarKind.JSON_SCHEMA, SCHEMA_TEXT)),
    ("structured_outputs", {"regex": "a+", "json_object": False}, matching(GrammarKind.REGEX, "a+")),
    ("structured_outputs", {"choice": ["a", "\u00e9"]}, matching(GrammarKind.CHOICE, '["a", "\u00e9"]')),
    ("structured_outputs", {"grammar": 'root ::= "a"'}, matching(GrammarKind.EBNF, 'root ::= "a"')),
    ("structured_outputs", {"json_object": True}, matching(GrammarKind.JSON_OBJECT)),
]

NEUTRAL: list[tuple[str, object]] = [
    *((name, None) for name in dict.fromkeys(name for name, _, _ in OPTIONS)),
    ("top_k", 0),
    ("top_k", -1),
    ("min_p", 0),
    ("min_p", 0.0),
    ("frequency_penalty", 0),
    ("presence_penalty", 0.0),
    ("repetition_penalty", 1),
    ("repetition_penalty", 1.0),
    ("logit_bias", {}),
    ("bad_words", []),
    ("min_tokens", 0),
    ("ignore_eos", False),
    ("stop_token_ids", []),
    ("include_stop_str_in_output", False),
    ("response_format", {"type": "text"}),
]


def bodies(**fields: object) -> tuple[tuple[str, dict[str, object]], ...]:
    return (CHAT, chat(**fields)), (COMPLETIONS, completion(**fields))


@pytest.mark.parametrize(("field", "value", "asked"), OPTIONS)
async def test_option_reaches_the_engine(field: str, value: object, asked: dict[str, Any]) -> None:
    async with serving() as served:
        for path, body in bodies(max_tokens=512, **{field: value}):
            response = await served.post(path, body)
            assert response.status_code == 200, response.text
            assert served.engine.submitted[-1].sampling == Sampling(512, **asked)


@pytest.mark.parametrize(("field", "value", "asked"), OPTIONS)
async def test_engine_that_does_not_honour_it(field: str, value: object, asked: dict[str, Any]) -> None:
    """Refused by the name that the caller used, whatever else the engine honours, and nothing is queued."""
    for options in COMMON_OPTIONS, ALL_OPTIONS - asked.keys():
        async with serving(ScriptedEngine(options=options)) as served:
            for path, body in bodies(**{field: value}):
                for extra in {}, {"stream": field != "prompt_logprobs", "n": 2}:
                    error = await served.error(path, {**body, **extra})
                    assert (error["status"], error["type"]) == (400, "invalid_request_error")
                    assert (error["code"], error["param"]) == ("unsupported_parameter", field)
                    assert error["message"] == f"The scripted engine does not honour '{field}'; leave it out."
            assert served.engine.submitted == []


@pytest.mark.parametrize(("field", "value"), NEUTRAL)
async def test_what_asks_for_nothing_is_taken_by_every_engine(field: str, value: object) -> None:
    async with serving(ScriptedEngine(options=COMMON_OPTIONS)) as served:
        for path, body in bodies(max_tokens=512, **{field: value}):
            response = await served.post(path, body)
            assert response.status_code == 200, response.text
            assert served.engine.submitted[-1].sampling == Sampling(512)


def test_every_option_is_tested() -> None:
    assert COMMON_OPTIONS.union(*(asked for _, _, asked in OPTIONS)) == ALL_OPTIONS


async def test_schema_is_nested_up_to_the_bound() -> None:
    schema = "{" + '"not": {' * 63 + "}" * 64
    async with serving() as served:
        assert (await served.post(CHAT, chat(structured_outputs={"json": schema}))).status_code == 200
        assert served.engine.submitted[0].sampling.grammar == Grammar(GrammarKind.JSON_SCHEMA, schema)


async def test_text_format_goes_with_a_structure() -> None:
    fields = {"response_format": {"type": "text"}, "structured_outputs": {"regex": "a"}}
    async with serving() as served:
        assert (await served.post(CHAT, chat(**fields))).status_code == 200
        assert served.engine.submitted[0].sampling.grammar == Grammar(GrammarKind.REGEX, "a")
    async with serving(ScriptedEngine(options=COMMON_OPTIONS)) as served:
        assert (await served.error(CHAT, chat(**fields)))["param"] == "structured_outputs"
