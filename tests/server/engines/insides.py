"""What is told of a prompt's inside is what other requests would be told: the same on every engine."""

import math

from guards.core.verdict import GuardMode
from server.engines.events import FinishReason, PromptToken
from tests.server.engines.vllm.live import OTHERS, SUMS, Answer, Live, greedy

ASKS = greedy(max_tokens=1, logprobs=3, prompt_logprobs=3)
MATHEMATICS_ONLY = {"ksd-en": GuardMode.SHADOW, "ksd-code": GuardMode.SHADOW}
WATCHED = {**MATHEMATICS_ONLY, "ksd-mathematics": GuardMode.SHADOW}


def told(answer: Answer) -> tuple[PromptToken, ...]:
    assert all(not chunk.prompt for chunk in answer.chunks[1:])
    return answer.chunks[0].prompt


def in_turns(live: Live) -> tuple[int, ...]:
    """A question that is refused, and others behind it, each but the last with an answer."""
    asked, answer = [SUMS[0], *OTHERS, *OTHERS], live.engine.encode_text("Yes.", opened=False)
    return (*sum(((*live.chat(text), *answer) for text in asked[:-1]), ()), *live.chat(asked[-1]))


def as_single_requests(live: Live) -> None:
    """Asserts that each token is told where, and as, a request that ends before it would be answered.

    Of several turns: in a text without any, what was refused once is refused to its end.
    """
    ids = in_turns(live)
    prefixes = [ids[:size] for size in range(1, len(ids))]
    singles = [live.draw([prefix], greedy(max_tokens=1, logprobs=3), [MATHEMATICS_ONLY])[0] for prefix in prefixes]
    (watched,) = live.draw([ids], ASKS, [WATCHED])
    assert all(each.itself is not None for each in told(watched)[1:]), "the positive control: all is told in shadow"
    assert not watched.finish.withheld_in_prompt
    (guarded,) = live.draw([ids], ASKS, [MATHEMATICS_ONLY])
    seen = told(guarded)
    assert (len(seen), seen[0]) == (len(ids), PromptToken())
    withheld = {at for at, each in enumerate(seen[1:]) if each.itself is None}
    assert withheld == {at for at, single in enumerate(singles) if single.finish.reason is FinishReason.ABSTAIN}
    assert 0 < len(withheld) < len(singles), "some are withheld, and some are not"
    hits = guarded.finish.withheld_in_prompt
    assert hits is not None
    assert (hits.first.score.guard, hits.positions) == ("ksd-mathematics", len(withheld))
    assert hits.first.score.position == min(withheld)
    for at, single in enumerate(singles):
        token = seen[at + 1]
        if token.itself is None:
            assert token == PromptToken()
            continue
        (drawn,) = single.chunks[0].logprobs
        for mine, theirs in zip(token.top, drawn.top, strict=False):
            assert math.isclose(mine.logprob, theirs[2], abs_tol=2e-3)
        assert token.itself.token_id == ids[at + 1]
        assert [each.rank for each in token.top] == [1, 2, 3]
        control = told(watched)[at + 1].itself
        assert control is not None
        assert math.isclose(control.logprob, token.itself.logprob, abs_tol=2e-3)


def nothing_at_a_refused_end(live: Live) -> None:
    """Asserts that a prompt whose end is refused tells nothing, and that the same is told where guards only watch."""
    (watched,) = live.draw([SUMS[0]], ASKS, [WATCHED])
    assert len(told(watched)) == len(live.chat(SUMS[0]))
    for answer in live.draw([SUMS[0]] * 2, ASKS, [MATHEMATICS_ONLY] * 2):
        assert (answer.finish.reason, answer.chunks) == (FinishReason.ABSTAIN, ())
