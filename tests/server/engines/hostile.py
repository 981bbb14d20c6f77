"""Values that no engine can work with: each is refused by its option's name before anything runs, on every engine."""

import json
from dataclasses import replace
from typing import Any

import pytest

from server.engines.errors import InvalidOptionError
from server.engines.request import EngineRequest, Grammar, GrammarKind
from tests.server.engines.vllm.live import OTHERS, Live, greedy

DEEP = "(" * 30_000 + "a" + ")" * 30_000


def _grammar(kind: GrammarKind, text: str) -> dict[str, Any]:
    return {"grammar": Grammar(kind, text)}


INVALID: dict[str, dict[str, Any]] = {
    # One option each.
    "pattern that overflows the stack": _grammar(
        GrammarKind.JSON_SCHEMA, json.dumps({"type": "string", "pattern": DEEP})
    ),
    "deep regex": _grammar(GrammarKind.REGEX, DEEP),
    "long regex": _grammar(GrammarKind.REGEX, "a" * 100_000),
    "regex of much that may be left out": _grammar(GrammarKind.REGEX, "a*" * 30_000),
    "deep grammar": _grammar(GrammarKind.EBNF, "root ::= " + DEEP),
    "broken regex": _grammar(GrammarKind.REGEX, "((("),
    "broken grammar": _grammar(GrammarKind.EBNF, "root := nonsense (("),
    "rule that is missing": _grammar(GrammarKind.EBNF, "root ::= other"),
    "broken schema": _grammar(GrammarKind.JSON_SCHEMA, '{"type": "nonsense"}'),
    "schema that refers to nothing": _grammar(GrammarKind.JSON_SCHEMA, '{"$ref": "#/$defs/x"}'),
    "bias beyond the vocabulary": {"logit_bias": {10**6: 1.0}},
    "allowed beyond the vocabulary": {"allowed_token_ids": (10**6,)},
    "stop beyond the vocabulary": {"stop_token_ids": (10**6,)},
    "bad word of nothing": {"bad_words": (" ",)},
    "too many bad words": {"bad_words": tuple(f"w{index}" for index in range(200))},
    "more minimum than maximum": {"min_tokens": 100},
}


def refused(live: Live, name: str) -> None:
    """Asserts that it is, by `prepare` as by `submit`, in a message that does not repeat the value at length."""
    (option,) = INVALID[name]
    sampling = replace(greedy(), **INVALID[name])

    async def submit() -> None:
        live.engine.submit(EngineRequest(f"hostile {name}", live.chat(OTHERS[0]), sampling))

    with pytest.raises(InvalidOptionError) as prepared:
        live.engine.prepare(sampling)
    with pytest.raises(InvalidOptionError) as submitted:
        live.wait(submit())
    for error in (prepared.value, submitted.value):
        assert error.param == option
        assert 10 < len(str(error)) < 500
