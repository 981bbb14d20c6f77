"""Requests that would end or stall the engine for everybody are one caller's errors."""

import json
from dataclasses import replace
from typing import Any

import pytest

from guards.core.verdict import GuardMode
from server.engines.base import EngineRequest, FinishReason, Grammar, GrammarKind, Sampling
from server.engines.errors import UnsupportedOptionError
from tests.server.engines.vllm.live import OTHERS, Live, greedy

DEEP = "(" * 30_000 + "a" + ")" * 30_000
OPTIONS: dict[str, dict[str, Any]] = {
    "pattern that overflows the stack": {
        "grammar": Grammar(GrammarKind.JSON_SCHEMA, json.dumps({"type": "string", "pattern": DEEP}))
    },
    "deep regex": {"grammar": Grammar(GrammarKind.REGEX, DEEP)},
    "long regex": {"grammar": Grammar(GrammarKind.REGEX, "a" * 100_000)},
    "deep grammar": {"grammar": Grammar(GrammarKind.EBNF, "root ::= " + DEEP)},
    "broken regex": {"grammar": Grammar(GrammarKind.REGEX, "(((")},
    "broken grammar": {"grammar": Grammar(GrammarKind.EBNF, "root := nonsense ((")},
    "broken schema": {"grammar": Grammar(GrammarKind.JSON_SCHEMA, '{"type": "nonsense"}')},
    "bias beyond the vocabulary": {"logit_bias": {10**6: 1.0}},
    "allowed beyond the vocabulary": {"allowed_token_ids": (10**6,)},
    "stop beyond the vocabulary": {"stop_token_ids": (10**6,)},
    "too many log-probabilities": {"logprobs": 1000},
    "more minimum than maximum": {"min_tokens": 100},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_it_is_refused_and_the_others_go_on(engine: Live, name: str) -> None:
    async def submit() -> None:
        sampling = replace(greedy(), **OPTIONS[name])
        engine.engine.submit(EngineRequest(f"hostile {name}", engine.chat(OTHERS[0]), sampling))

    with pytest.raises(UnsupportedOptionError) as refused:
        engine.wait(submit())
    assert len(str(refused.value)) < 700, "the caller's own value is not repeated at length"
    answer = engine.draw(OTHERS[:1], greedy(min_tokens=1), [{"ksd-en": GuardMode.SHADOW}])[0]
    assert answer.finish.reason is FinishReason.STOP


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(max_tokens=8, temperature=1e-300),
        Sampling(max_tokens=8, top_p=1e-300),
        Sampling(max_tokens=8, top_k=2**31 - 1),
        Sampling(max_tokens=8, min_p=1.0),
        Sampling(max_tokens=8, seed=2**62),
        Sampling(max_tokens=8, repetition_penalty=10.0, presence_penalty=-2.0),
        Sampling(max_tokens=8, logit_bias=dict.fromkeys(range(200), -100.0)),
        Sampling(max_tokens=8, stop=("a" * 512,) * 4),
    ],
)
def test_odd_numbers_hurt_nobody(engine: Live, sampling: Sampling) -> None:
    answers = engine.draw(OTHERS, sampling, [{"ksd-en": GuardMode.SHADOW, "ksd-code": GuardMode.SHADOW}] * len(OTHERS))
    assert {answer.finish.reason for answer in answers} <= {FinishReason.STOP, FinishReason.LENGTH}
    assert engine.engine.healthy()
