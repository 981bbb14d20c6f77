"""What an answer's stream passes on, whatever order the engine's outputs and the guards' verdicts come in."""

import asyncio
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.decoders import Fuse, Replace, Sequence
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from guards.contract.guard import NEURONS, Health, Part
from guards.core.policy import Policy, Rule
from guards.core.verdict import GuardMode, Reading
from guards.model.openings import Opening
from server.engines.answer_state import AnswerState, GuardFacts
from server.engines.events import Chunk, Event, Finish, FinishReason, Hit
from server.engines.request import EngineRequest, Sampling
from server.engines.stream import AnswerStream, Drawn
from server.engines.text import OthersOpenings
from server.errors import UnverifiedError
from server.generation import require_sound

PROMPT = (4, 5, 6)
EOS = 2
FACTS = {"sums": GuardFacts("sums", "ksd", (Part("bare", (0,)),), None, "0" * 64)}
OTHERS = OthersOpenings([Opening((30, 31, 32), 2, written=False), Opening((30, 33), 2, written=True)])
OUTSIDE, INSIDE = (Reading.OUTSIDE, (9.0,)), (Reading.INSIDE, (1.0,))


def tokenizer() -> Any:
    backend = Tokenizer(WordLevel({f"w{i}": i for i in range(64)}, unk_token="w0"))
    backend.decoder = Sequence([Replace("w", " w"), Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="w2")


def judge(of: AnswerState, generated: int, reading: tuple[Reading, tuple[float, ...]]) -> None:
    of.generated = generated
    of.judge(FACTS, {"sums": reading})


def answer(mode: GuardMode = GuardMode.ENFORCE, **sampling: Any) -> AnswerState:
    policy = Policy({"sums": Rule(mode, taus=(3.0,))})
    return AnswerState(EngineRequest("r", PROMPT, Sampling(max_tokens=20, **sampling), policy))


def events(of: AnswerState, *drawn: Drawn | None) -> tuple[int, Finish, list[bool]]:
    """(tokens passed on, how it ended, what was said about that to the engine)."""
    closed: list[bool] = []
    stream = AnswerStream(of, tokenizer(), frozenset({EOS}), closed.append, OTHERS)

    async def read() -> list[Event]:
        for each in drawn:
            stream.outputs.put_nowait(each)
        return [event async for event in stream]

    *chunks, finish = asyncio.run(asyncio.wait_for(read(), 5))
    assert isinstance(finish, Finish)
    assert all(isinstance(chunk, Chunk) for chunk in chunks)
    return len(chunks), finish, closed


STOPPED = Drawn(ended=FinishReason.STOP)


@pytest.mark.parametrize(
    "drawn",
    [
        (Drawn((10,)), Drawn((11,)), STOPPED),
        (Drawn((10, 11)), STOPPED),
        (Drawn((10, 11), ended=FinishReason.STOP),),
        (Drawn((10,)), Drawn((11,), ended=FinishReason.STOP)),
    ],
)
def test_what_came_before_a_hit_is_passed_on_however_outputs_are_merged(drawn: tuple[Drawn, ...]) -> None:
    """The engine is ahead: the hit after two tokens is known before any of them is read."""
    of = answer()
    judge(of, 0, OUTSIDE)
    judge(of, 2, INSIDE)
    passed, finish, closed = events(of, *drawn)
    assert (passed, finish.reason, finish.completion_tokens) == (2, FinishReason.ABSTAIN, 2)
    assert finish.verified
    assert closed == [True]


def test_an_engine_that_goes_on_after_a_hit_is_not_listened_to() -> None:
    of = answer()
    judge(of, 0, OUTSIDE)
    judge(of, 1, INSIDE)
    passed, finish, _ = events(of, Drawn((10, 11, 12)), Drawn((13,)), Drawn((14,), ended=FinishReason.LENGTH))
    assert (passed, finish.reason) == (1, FinishReason.ABSTAIN)


def test_a_hit_at_the_prompt_passes_nothing() -> None:
    of = answer()
    judge(of, 0, INSIDE)
    assert events(of, Drawn((10, 11)), STOPPED)[0] == 0


def test_tokens_that_no_guard_judged_are_an_error() -> None:
    passed, finish, closed = events(answer(), Drawn((10,)), STOPPED)
    assert (passed, finish.reason, finish.verified) == (0, FinishReason.ERROR, False)
    assert finish.error == "a token was drawn that no guard judged"
    assert closed == [False]
    with pytest.raises(UnverifiedError):
        require_sound(finish)


@pytest.mark.parametrize("reading", [(Reading.MISSING, ()), (Reading.INVALID, (float("nan"),))])
def test_a_reading_that_is_none_is_an_error(reading: tuple[Reading, tuple[float, ...]]) -> None:
    of = answer(GuardMode.SHADOW)
    judge(of, 0, reading)
    passed, finish, _ = events(of, Drawn((10,)), STOPPED)
    assert (passed, finish.reason, finish.verified) == (0, FinishReason.ERROR, False)


def test_the_engine_stops() -> None:
    of = answer()
    judge(of, 0, OUTSIDE)
    passed, finish, _ = events(of, Drawn((10,)), None)
    assert (passed, finish.reason) == (1, FinishReason.ERROR)


def test_a_hit_past_a_stop_string_is_not_the_answers() -> None:
    """The engine drew further than the stop string before anybody read it."""
    of = answer(stop=("w11",))
    judge(of, 0, OUTSIDE)
    judge(of, 3, INSIDE)
    passed, finish, closed = events(of, Drawn((10, 11, 12)), STOPPED)
    assert (passed, finish.reason, finish.hits) == (2, FinishReason.STOP, ())
    assert closed == [False]


@pytest.mark.parametrize(
    ("stop", "reason", "acted"),
    [
        (("w11",), FinishReason.STOP, {("shift", "neurons"): 5.0 + 3.0, ("turn", "degrees"): 0.5 + 0.25}),
        (("w12",), FinishReason.STOP, {("shift", "neurons"): 5.0 + 3.0 + 7.0, ("turn", "degrees"): 0.5 + 0.25 + 1.0}),
        ((), FinishReason.LENGTH, {("shift", "neurons"): 5.0 + 3.0 + 7.0, ("turn", "degrees"): 0.5 + 0.25 + 1.0}),
    ],
    ids=["a token behind the stop string", "none behind it", "no stop string"],
)
def test_what_interventions_did_past_a_stop_string_is_not_the_answers(
    stop: tuple[str, ...], reason: FinishReason, acted: dict[tuple[str, str], float]
) -> None:
    """The engine drew three tokens and read the position of each before anybody looked for the stop string."""
    facts = {
        "shift": GuardFacts("sums", "neuron-adjust", (Part("", (0,)),), "neurons", "0" * 64),
        "turn": GuardFacts("sums", "turning", (Part("", (1,)),), "degrees", "0" * 64),
    }
    health = {"shift": NEURONS, "turn": Health("degrees")}
    policy = Policy({"shift": Rule(), "turn": Rule()})
    of = AnswerState(EngineRequest("r", PROMPT, Sampling(max_tokens=3, stop=stop), policy))
    of.judge(facts, {"shift": (Reading.OUTSIDE, (5.0,)), "turn": (Reading.OUTSIDE, (0.5,))})
    of.take_acted(1, health, (3.0, 0.25))
    of.generated = 2
    of.judge(facts, {"shift": (Reading.OUTSIDE, (7.0,)), "turn": (Reading.OUTSIDE, (1.0,))})
    _, finish, _ = events(of, Drawn((10, 11, 12), ended=FinishReason.LENGTH))
    assert finish.reason is reason
    assert {(each.guard, each.unit): each.amount for each in finish.acted} == acted
    assert len(finish.acted) == len(acted), "one sum each"


class AddsAnother(Hit):
    """A hit whose reader is interrupted by the engine's thread, which adds the next one."""

    def __init__(self, hit: Hit, hits: dict[str, Hit]) -> None:
        super().__init__(hit.score, hit.mode)
        object.__setattr__(self, "hits", hits)

    def __getattribute__(self, name: str) -> Any:
        if name == "score":
            object.__getattribute__(self, "hits").setdefault("late", Hit(super().__getattribute__(name), self.mode))
        return super().__getattribute__(name)


def test_hits_may_be_added_while_they_are_read() -> None:
    """The engine is ahead of a stop string, in a thread of its own."""
    of = answer(GuardMode.SHADOW, stop=("w11",))
    judge(of, 0, INSIDE)
    first = of.hits["sums"] = AddsAnother(of.hits["sums"], of.hits)
    _, finish, _ = events(of, Drawn((10, 11)))
    assert "late" in of.hits
    assert finish.hits == (first,)


def test_min_tokens_holds_a_stop_string_back() -> None:
    of = answer(stop=("w11",), min_tokens=3)
    judge(of, 0, OUTSIDE)
    assert events(of, Drawn((10, 11, 12, 13)), Drawn((11,)), STOPPED)[0] == 5


@pytest.mark.parametrize(
    "drawn",
    [
        (Drawn((10, 30, 31, 11, 12)), STOPPED),
        (Drawn((10,)), Drawn((30,)), Drawn((31,)), Drawn((11,))),
        (Drawn((10, 30)), Drawn((31,), ended=FinishReason.LENGTH)),
    ],
)
def test_an_answer_ends_where_it_opens_somebody_elses_message(drawn: tuple[Drawn, ...]) -> None:
    """Whatever ends it else: what it went on with would be judged as that one's words."""
    of = answer(ignore_eos=True, stop=("w12",), min_tokens=9)
    judge(of, 0, OUTSIDE)
    passed_on, finish, closed = events(of, *drawn)
    assert (passed_on, finish.reason, finish.completion_tokens, finish.verified) == (3, FinishReason.STOP, 3, True)
    assert closed == [drawn[-1].ended is FinishReason.LENGTH]


def test_an_answer_may_open_its_own_message_and_name_what_opens_others() -> None:
    of = answer()
    judge(of, 0, OUTSIDE)
    assert events(of, Drawn((31, 30, 33, 31, 30, 12)), STOPPED)[0] == 6


def test_an_opening_may_begin_in_the_prompt() -> None:
    of = AnswerState(EngineRequest("r", (4, 30), Sampling(max_tokens=20), answer().request.policy))
    judge(of, 0, OUTSIDE)
    assert events(of, Drawn((31, 10)), STOPPED)[0] == 1


def given_up(of: AnswerState, *drawn: Drawn, read: int) -> Finish | None:
    """What is known of an answer of which some events were read before it was given up."""
    stream = AnswerStream(of, tokenizer(), frozenset({EOS}), lambda finished: None, OTHERS)

    async def work() -> Finish | None:
        for each in drawn:
            stream.outputs.put_nowait(each)
        for _ in range(read):
            await anext(stream)
        first = await stream.aclose()
        assert await stream.aclose() is None, "known once"
        return first

    return asyncio.run(asyncio.wait_for(work(), 5))


def test_a_hit_is_known_of_an_answer_that_is_given_up() -> None:
    """The engine is ahead of the stream, and judged what nobody has heard of."""
    of = answer()
    judge(of, 0, OUTSIDE)
    judge(of, 1, INSIDE)
    finish = given_up(of, Drawn((10,)), read=1)
    assert finish is not None
    assert finish.reason is FinishReason.ABSTAIN
    assert finish.completion_tokens == 1


def test_an_answer_that_is_given_up_without_one_says_so() -> None:
    of = answer()
    judge(of, 0, OUTSIDE)
    finish = given_up(of, read=0)
    assert finish is not None
    assert (finish.reason, finish.hits) == (FinishReason.GIVEN_UP, ())


def test_an_end_that_nobody_took_is_known() -> None:
    of = answer()
    judge(of, 0, OUTSIDE)
    finish = given_up(of, Drawn((10,), ended=FinishReason.LENGTH), read=1)
    assert finish is not None
    assert finish.reason is FinishReason.LENGTH


def test_of_an_answer_that_was_over_nothing_more_is_known() -> None:
    of = answer()
    judge(of, 0, OUTSIDE)
    assert given_up(of, Drawn((10,), ended=FinishReason.LENGTH), read=2) is None
