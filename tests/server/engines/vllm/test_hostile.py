"""Requests that would end or stall the engine for everybody are one caller's errors."""

import pytest

from guards.core.verdict import GuardMode
from server.engines.errors import InvalidOptionError
from server.engines.events import FinishReason
from server.engines.request import Grammar, GrammarKind, Sampling
from tests.server.engines.hostile import INVALID, refused
from tests.server.engines.vllm.live import OTHERS, Live, greedy

WATCHING = [{"ksd-en": GuardMode.SHADOW}]


@pytest.mark.parametrize("name", INVALID)
def test_it_is_refused_and_the_others_go_on(engine: Live, name: str) -> None:
    refused(engine, name)
    answer = engine.draw(OTHERS[:1], greedy(min_tokens=1), WATCHING)[0]
    assert answer.finish.reason is FinishReason.STOP


def test_more_log_probabilities_than_vllm_gives(engine: Live) -> None:
    with pytest.raises(InvalidOptionError) as error:
        engine.draw(OTHERS[:1], greedy(logprobs=1000), WATCHING)
    assert error.value.param == "logprobs"


def test_what_only_another_compiler_takes_is_refused_before_it_runs(engine: Live) -> None:
    """vLLM's own default lets it pass, and fails once the compiler of the first grammar gets it."""
    digits = greedy(grammar=Grammar(GrammarKind.REGEX, "[0-9]+"))
    assert engine.draw(OTHERS[:1], digits, WATCHING)[0].finish.reason is not FinishReason.ERROR
    with pytest.raises(InvalidOptionError) as error:
        engine.draw(OTHERS[:1], greedy(grammar=Grammar(GrammarKind.REGEX, r"\p{L}+")), WATCHING)
    assert error.value.param == "grammar"


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
