"""What an engine tells of an answer: pieces of text, then how it ended and what guards read and did.

An engine never raises for a verdict: an abstention is an outcome (`Finish`), not an exception.
"""

from abc import abstractmethod
from collections.abc import AsyncIterator
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from guards.core.trace import PartTrace
from guards.core.verdict import GuardMode, Reading, Stage


@dataclass(frozen=True)
class TokenLogprob:
    """A drawn token's natural-log probability, with the most likely alternatives at its position."""

    token: str
    token_bytes: bytes
    logprob: float
    top: tuple[tuple[str, bytes, float], ...] = ()


class RankedToken(NamedTuple):
    """A token that could have come at a position, and how likely it was; rank 1 is the likeliest."""

    token_id: int
    token: str
    token_bytes: bytes
    logprob: float
    rank: int


@dataclass(frozen=True)
class PromptToken:
    """One token of a prompt as the model, given those before it, saw it come.

    `itself` is None for the first token, and where a guard withholds it; `top` are the likeliest, in order.
    """

    itself: RankedToken | None = None
    top: tuple[RankedToken, ...] = ()


@dataclass(frozen=True)
class Chunk:
    """A piece of answer: `tokens` newly drawn tokens and the text they complete (may be empty).

    `token_ids` are those tokens, where the engine tells; some tool-call parsers look at them. `prompt` has an entry for
    each token of the prompt, in an answer's first chunk, where `Sampling.prompt_logprobs` asks for it.
    """

    text: str
    tokens: int
    logprobs: tuple[TokenLogprob, ...] = ()
    token_ids: tuple[int, ...] = ()
    prompt: tuple[PromptToken, ...] = ()


class FinishReason(StrEnum):
    """Why an answer ended."""

    STOP = "stop"
    LENGTH = "length"
    ABSTAIN = "abstain"
    ERROR = "error"
    GIVEN_UP = "given_up"
    """Nothing ended it yet when it was cancelled, mostly since its caller left. Nobody gets this one."""


@dataclass(frozen=True)
class GuardScore:
    """One guard's reading at one position.

    `score` and `tau` belong to the part (cube) with the smallest score/tau; a detector fires where
    score <= tau. For an intervention `score` is what it did there, in a unit of its own, and `tau` is None.
    """

    guard: str
    skill: str
    method: str
    reading: Reading
    score: float
    tau: float | None
    layers: tuple[int, ...]
    position: int
    stage: Stage
    digest: str
    """Of the artifact that read it; another may have taken its place since."""
    part: str = ""


@dataclass(frozen=True)
class GuardTrace:
    """What one detector's parts that judge prompts read along a prompt."""

    guard: str
    parts: tuple[PartTrace, ...]


@dataclass(frozen=True)
class Hit:
    """A detector fired at a position that its scope covers. `mode` says whether that was enforced."""

    score: GuardScore
    mode: GuardMode


@dataclass(frozen=True)
class PromptHits:
    """A detector fired inside a prompt whose log-probabilities were asked for: `first`, and at how many positions.

    Where its mode is enforced, nothing is told of the tokens after these.
    """

    first: Hit
    positions: int


@dataclass(frozen=True)
class GuardFault:
    """A guard without a valid reading at a position that it had to read: MISSING or INVALID."""

    guard: str
    reading: Reading
    position: int
    stage: Stage
    digest: str


@dataclass(frozen=True)
class Acted:
    """What an intervention did to an answer: how much of its unit, over all positions."""

    guard: str
    unit: str
    amount: float


@dataclass(frozen=True)
class Finish:
    """The last event of every request.

    `hits`: the first hit of each guard, enforced or shadowed. `prompt_scores`: every guard at the last prompt
    token. `verified`: every position at which a token was drawn had a finite reading of every guard; `faults`: each
    guard's first that was not. `error` is set, for the operator's log only, when `reason` is ERROR.
    """

    reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    verified: bool
    hits: tuple[Hit, ...] = ()
    prompt_scores: tuple[GuardScore, ...] = ()
    acted: tuple[Acted, ...] = ()
    prompt_hits: tuple[PromptHits, ...] = ()
    faults: tuple[GuardFault, ...] = ()
    error: str | None = None

    def __post_init__(self) -> None:
        if self.reason is FinishReason.ABSTAIN:
            assert any(hit.mode is GuardMode.ENFORCE for hit in self.hits), (
                "an abstention names the hit that enforced it"
            )

    @property
    def abstained_on(self) -> Hit | None:
        """The enforced hit that ended this answer, if one did."""
        if self.reason is not FinishReason.ABSTAIN:
            return None
        return next(hit for hit in self.hits if hit.mode is GuardMode.ENFORCE)

    @property
    def withheld_in_prompt(self) -> PromptHits | None:
        """The first guard that withholds log-probabilities of this prompt, if one does."""
        return next((hits for hits in self.prompt_hits if hits.first.mode is GuardMode.ENFORCE), None)

    def drawn_before(self, hit: Hit) -> int:
        """Tokens of the answer that were drawn before one of its hits."""
        return max(0, hit.score.position - (self.prompt_tokens - 1))

    def sent_before(self, hit: Hit, hold_back_tokens: int | None) -> int:
        """How many of them a caller may have, where the hit withheld the rest.

        `hold_back_tokens`: by how many the caller's stream lags; None where an answer goes out whole.
        """
        if self.reason is not FinishReason.ABSTAIN or hold_back_tokens is None:
            return 0
        return max(0, self.drawn_before(hit) - hold_back_tokens)


Event = Chunk | Finish


class EventStream(AsyncIterator[Event]):
    """One answer's events: Chunks, then exactly one Finish."""

    @abstractmethod
    async def aclose(self) -> Finish | None:
        """Gives the answer up and cancels it, also when nothing was iterated yet. Safe to call twice.

        Returns what is known of an answer whose Finish was not handed on: a hit that was found ended it, GIVEN_UP where
        nothing did. None of one that was over.
        """
