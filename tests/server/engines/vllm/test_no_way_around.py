"""Nothing that a request can ask for gets a token past a guard."""

import pytest

from guards.core.verdict import GuardMode, Stage
from server.engines.errors import PromptError, UnsupportedOptionError
from server.engines.events import FinishReason
from server.engines.request import Message
from tests.server.engines.vllm.live import OTHERS, SUMS, Live, greedy
from tests.server.engines.ways import VARIABLES, ways

OPTIONS = ways(sentinel=2)  # the end-of-text token
MATHEMATICS_ONLY = {"ksd-en": GuardMode.SHADOW, "ksd-code": GuardMode.SHADOW}
NOTHING_ENFORCED = {**MATHEMATICS_ONLY, "ksd-mathematics": GuardMode.SHADOW}


@pytest.mark.parametrize("name", OPTIONS)
def test_no_option_gets_a_forgotten_answer_out(engine: Live, name: str) -> None:
    sampling = OPTIONS[name]
    calm = engine.draw(OTHERS[:1], greedy(), [MATHEMATICS_ONLY])[0]
    prompts = (SUMS[0], SUMS[0], SUMS[1])
    # Positive control: where the guard only watches, the same request draws tokens, and the hit is seen.
    for answer in engine.draw(prompts, sampling, [NOTHING_ENFORCED] * 3):
        assert answer.chunks or name == "only the sentinel allowed"
        assert answer.finish.reason in (FinishReason.STOP, FinishReason.LENGTH)
        assert any(hit.score.guard == "ksd-mathematics" for hit in answer.finish.hits)
    # The second prompt is the first again: n > 1, and a prefix already in the cache.
    guarded = engine.draw((*prompts, OTHERS[0]), sampling, [MATHEMATICS_ONLY] * 4)
    for answer in guarded[:3]:
        assert answer.finish.reason is FinishReason.ABSTAIN
        assert answer.chunks == ()
        assert answer.finish.completion_tokens == 0
        assert answer.finish.abstained_on is not None
        assert answer.finish.abstained_on.score.guard == "ksd-mathematics"
        assert answer.finish.abstained_on.score.stage is Stage.PROMPT
        assert answer.finish.verified
    # Options can make the model calculate where nobody asked for it, and then the answer is withheld.
    assert guarded[3].finish.reason is not FinishReason.ERROR
    assert guarded[3].chunks
    assert guarded[3].finish.verified
    if sampling == greedy():
        assert guarded[3].text == calm.text


WRITES = "Hi there! can you tell me the young of a frog?"
ENGLISH_WATCHED = {"ksd-en": GuardMode.SHADOW, "ksd-code": GuardMode.SHADOW, "ksd-mathematics": GuardMode.SHADOW}
ENGLISH_ENFORCED = ENGLISH_WATCHED | {"ksd-en": GuardMode.ENFORCE}


@pytest.mark.parametrize("name", OPTIONS)
def test_no_option_continues_past_a_hit_while_writing(engine: Live, name: str) -> None:
    """ksd-en fires inside this answer: what came before is out already, nothing after it is."""
    sampling = OPTIONS[name]
    control, guarded = (engine.draw([WRITES], sampling, [modes])[0] for modes in (ENGLISH_WATCHED, ENGLISH_ENFORCED))
    hits = [hit.score for hit in control.finish.hits if hit.score.guard == "ksd-en"]
    drawn = sum(chunk.tokens for chunk in guarded.chunks)
    assert drawn == guarded.finish.completion_tokens
    if sampling.temperature == 0 and hits:
        assert guarded.finish.reason is FinishReason.ABSTAIN
        assert drawn == hits[0].position - (len(engine.chat(WRITES)) - 1)
        assert drawn < control.finish.completion_tokens
    if guarded.finish.reason is FinishReason.ABSTAIN:
        hit = guarded.finish.abstained_on
        assert hit is not None
        assert hit.score.position == len(engine.chat(WRITES)) - 1 + drawn
    assert guarded.finish.reason is not FinishReason.ERROR


def test_the_writing_test_has_a_hit_while_writing(engine: Live) -> None:
    """Without one, the test above would show nothing."""
    answer = engine.draw([WRITES], greedy(), [ENGLISH_ENFORCED])[0]
    assert answer.finish.abstained_on is not None
    assert answer.finish.abstained_on.score.stage is Stage.GENERATION
    assert answer.text


def test_logprobs_of_a_cut_answer_end_before_the_withheld_token(engine: Live) -> None:
    answer = engine.draw([WRITES], greedy(logprobs=3), [ENGLISH_ENFORCED])[0]
    assert answer.finish.reason is FinishReason.ABSTAIN
    assert sum(len(chunk.logprobs) for chunk in answer.chunks) == answer.finish.completion_tokens > 0


@pytest.mark.parametrize("name", VARIABLES)
def test_no_template_variable_changes_what_is_judged(engine: Live, name: str) -> None:
    """It is refused, or the prompt is the same, which abstains."""
    live = engine
    try:
        ids = live.engine.encode_chat([Message("user", SUMS[0])], (), VARIABLES[name])
    except (PromptError, UnsupportedOptionError):
        return
    assert ids == live.chat(SUMS[0])
    (answer,) = live.draw([ids], greedy(), [MATHEMATICS_ONLY])
    assert (answer.finish.reason, answer.chunks) == (FinishReason.ABSTAIN, ())
