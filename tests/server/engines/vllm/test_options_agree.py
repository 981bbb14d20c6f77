"""An option means the same on both engines: greedy answers under it are the same text."""

import pytest

from guards.core.verdict import GuardMode
from server.engines.request import GrammarKind
from tests.server.engines.vllm.live import OTHERS, SUMS, Live
from tests.server.engines.ways import END, ways

NOTHING = dict.fromkeys(("ksd-en", "ksd-code", "ksd-mathematics"), GuardMode.SHADOW)
JSON = (GrammarKind.JSON_SCHEMA, GrammarKind.JSON_OBJECT)
GREEDY = {
    name: sampling
    for name, sampling in ways(END).items()
    if sampling.temperature == 0 and (sampling.grammar is None or sampling.grammar.kind not in JSON)
}
"""Not JSON: each engine's compiler has its own places for blanks, and where vLLM's are free the demo writes no end."""


@pytest.mark.parametrize("name", GREEDY)
def test_greedy_answers_are_the_same(engine: Live, reference: Live, name: str) -> None:
    prompts = (*SUMS[:2], *OTHERS[:2])
    theirs, ours = (each.draw(prompts, GREEDY[name], [NOTHING] * 4) for each in (engine, reference))
    for their, our in zip(theirs, ours, strict=True):
        assert our.text == their.text
        assert our.finish.reason is their.finish.reason
        assert our.finish.completion_tokens == their.finish.completion_tokens
