"""One answer's events, made from the tokens that an engine's loop delivers for it."""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from guards.core.verdict import Verdict
from guards.model.openings import LONGEST
from server.engines.answer_state import AnswerState
from server.engines.events import (
    Acted,
    Chunk,
    Event,
    EventStream,
    Finish,
    FinishReason,
    PromptHits,
    PromptToken,
    TokenLogprob,
)
from server.engines.text import Detokenizer, OthersOpenings, StopFinder

_GIVEN_UP = {
    Verdict.ALLOW: FinishReason.GIVEN_UP,
    Verdict.SHADOW: FinishReason.GIVEN_UP,
    Verdict.ABSTAIN: FinishReason.ABSTAIN,
    Verdict.ERROR: FinishReason.ERROR,
}
"""What an answer that is given up ended by, as far as guards had read it."""


@dataclass(frozen=True)
class Drawn:
    """Tokens drawn since the last one of these, a log-probability for each or none, and how the answer ended.

    `prompt`: with the first token, all of the prompt's, where they were asked for.
    """

    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt: tuple[PromptToken, ...] = ()
    ended: FinishReason | None = None
    """STOP (a stop token), LENGTH or ERROR; the verdict of the answer's row decides over it."""
    error: str | None = None


class AnswerStream(EventStream):
    """Chunks, then exactly one Finish.

    `close(finished)` is called once, when the last event was given or the caller gives up before that; it is safe to
    abandon a stream that was never iterated as long as `aclose` is called.
    """

    def __init__(
        self,
        answer: AnswerState,
        tokenizer: Any,
        stop_ids: frozenset[int],
        close: Callable[[bool], None],
        others: OthersOpenings,
    ) -> None:
        """`others`: where the answer opens one of these messages, it is over."""
        sampling = answer.request.sampling
        self.outputs: asyncio.Queue[Drawn | None] = asyncio.Queue()
        """None says that the engine stopped."""
        self.answer = answer
        self._hidden = stop_ids if sampling.include_stop else stop_ids.union(sampling.stop_token_ids)
        self._text = Detokenizer(tokenizer, special_tokens=answer.request.special_tokens)
        self._stops = StopFinder(sampling.stop, include=sampling.include_stop)
        self._others = others
        self._newest = list(answer.request.prompt_token_ids[-LONGEST:])
        """Tokens, as many as an opening may have."""
        self._close: Callable[[bool], None] | None = close
        self._pending: list[Event] = []
        self._seen = 0

    async def __anext__(self) -> Event:
        while not self._pending:
            if self._close is None:
                raise StopAsyncIteration
            self._take(await self.outputs.get())
        return self._pending.pop(0)

    async def aclose(self) -> Finish | None:
        """Gives the answer up: a running request is cancelled. Safe to call twice."""
        if self._close is not None:
            self._pending.clear()
            self._finish(_GIVEN_UP[self.answer.outcome], self.answer.generated, ended=False)
        pending, self._pending = self._pending, []
        return next((event for event in pending if isinstance(event, Finish)), None)

    def _end(self, *, finished: bool) -> None:
        close, self._close = self._close, None
        if close is not None:
            close(finished)

    def _take(self, drawn: Drawn | None) -> None:
        """Turns what was drawn into events."""
        answer = self.answer
        if drawn is None:
            answer.fail("the engine stopped")
            self._finish(FinishReason.ERROR, answer.generated, ended=False)
            return
        finished = drawn.ended is not None
        if drawn.error is not None:
            answer.fail(drawn.error)
        if drawn.tokens and not answer.judged:
            answer.fail_unverified("a token was drawn that no guard judged")
        if self._seen == 0 and drawn.tokens and (lacks := self._lacks(drawn)):
            answer.fail_unverified(lacks)
            drawn = Drawn(ended=FinishReason.ERROR)
        ended, allowed = drawn.ended is not None, answer.outcome is Verdict.ALLOW
        # Outputs may come several at a time: what was drawn before a token was withheld is good, what follows is not.
        tokens = drawn.tokens if allowed else drawn.tokens[: max(0, answer.generated - self._seen)]
        for index, token in enumerate(tokens):
            self._seen += 1
            self._newest = [*self._newest[1 - LONGEST :], token]
            over = self._others.end(self._newest)
            final = over or (ended and index == len(tokens) - 1)
            hidden = over or token in self._hidden
            if self._push(token, drawn.logprobs[index : index + 1], drawn.prompt, final=final, hidden=hidden) or over:
                self._finish(FinishReason.STOP, self._seen, ended=ended)
                return
        if not allowed and (ended or not answer.judged):
            abstained = answer.outcome is Verdict.ABSTAIN
            self._finish(FinishReason.ABSTAIN if abstained else FinishReason.ERROR, answer.generated, ended=finished)
        elif drawn.ended is not None:
            self._finish(drawn.ended, self._seen, ended=finished)

    def _lacks(self, drawn: Drawn) -> str | None:
        """What is wrong with what is told of the prompt."""
        asked = self.answer.request.sampling.prompt_logprobs is not None
        wanted = len(self.answer.request.prompt_token_ids) if asked else 0
        if len(drawn.prompt) != wanted:
            return f"got {len(drawn.prompt)} tokens of the prompt, wanted {wanted}"
        told = {at for at, each in enumerate(drawn.prompt[1:]) if each.itself is not None}
        if told != set(range(wanted - 1)) - self.answer.withheld:
            return "what is told of the prompt is not what guards let through"
        return None

    def _push(
        self,
        token: int,
        logprobs: tuple[TokenLogprob, ...],
        prompt: tuple[PromptToken, ...],
        *,
        final: bool,
        hidden: bool,
    ) -> bool:
        """Adds one drawn token; True when it completed a stop string."""
        piece, stopped = "" if hidden else self._text.push(token), False
        if self._seen > self.answer.request.sampling.min_tokens:
            piece, stopped = self._stops.push(piece)
        if final and not stopped:
            piece += self._stops.flush()
        self._pending.append(Chunk(piece, 1, logprobs, (token,), prompt if self._seen == 1 else ()))
        return stopped

    def _finish(self, reason: FinishReason, tokens: int, *, ended: bool) -> None:
        answer = self.answer
        hits = tuple(answer.hits.values())  # a copy, made in one step: the engine's thread may add another meanwhile
        # The engine may be ahead of a stop string: what it read past the answer's end is not the answer's.
        last = len(answer.request.prompt_token_ids) - 1 + tokens - (reason is FinishReason.STOP)
        self._pending.append(
            Finish(
                reason=reason,
                prompt_tokens=len(answer.request.prompt_token_ids),
                completion_tokens=tokens,
                verified=answer.verified,
                hits=tuple(hit for hit in hits if hit.score.position <= last),
                prompt_scores=answer.prompt_scores,
                prompt_hits=tuple(
                    PromptHits(at[min(at)], len(at)) for at in map(dict, tuple(answer.prompt_hits.values()))
                ),
                acted=_sums(each for position, each in tuple(answer.acted) if position <= last),
                faults=tuple(answer.faults.values()),
                error=answer.error,
            )
        )
        self._end(finished=ended)


def _sums(acted: Iterable[Acted]) -> tuple[Acted, ...]:
    """What each intervention did in all."""
    sums: dict[tuple[str, str], float] = {}
    for each in acted:
        sums[each.guard, each.unit] = sums.get((each.guard, each.unit), 0.0) + each.amount
    return tuple(Acted(guard, unit, amount) for (guard, unit), amount in sums.items())
