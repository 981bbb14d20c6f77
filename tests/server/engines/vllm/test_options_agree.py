"""An option means the same on both engines: greedy answers under it are the same text."""

import pytest

from guards.core.verdict import GuardMode
from server.engines.base import GrammarKind, Sampling
from tests.server.engines.vllm.live import OTHERS, SUMS, Live
from tests.server.engines.ways import END, ways

NOTHING = dict.fromkeys(("ksd-en", "ksd-code", "ksd-mathematics"), GuardMode.SHADOW)
GREEDY = {name: sampling for name, sampling in ways(END).items() if sampling.temperature == 0}


def compared(text: str, sampling: Sampling) -> str:
    """Under a schema, without blanks: each engine's compiler has its own places for them, and the demo writes many."""
    by_schema = sampling.grammar is not None and sampling.grammar.kind is GrammarKind.JSON_SCHEMA
    return "".join(text.split()) if by_schema else text


@pytest.mark.parametrize("name", GREEDY)
def test_greedy_answers_are_the_same(engine: Live, reference: Live, name: str) -> None:
    prompts = (*SUMS[:2], *OTHERS[:2])
    theirs, ours = (each.draw(prompts, GREEDY[name], [NOTHING] * 4) for each in (engine, reference))
    for their, our in zip(theirs, ours, strict=True):
        assert compared(our.text, GREEDY[name]) == compared(their.text, GREEDY[name])
        assert our.finish.reason is their.finish.reason
        assert our.finish.completion_tokens == their.finish.completion_tokens
