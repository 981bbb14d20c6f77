"""What a caller is told of their own prompt: `echo`, and the log-probabilities of its tokens.

An abstained answer tells nothing of the model's, and in any other what a guard withholds is not told. In vLLM's
`prompt_logprobs` such a place is null, and all of it is where the answer is abstained. OpenAI's form, of `echo` with
`logprobs`, has to hold numbers. There a model stands in that says the operator's text and nothing else: that text has
log-probability 0, and any token LEAST_LOGPROB. So a client that adds up a continuation's log-probabilities, or asks
whether it was the likeliest, finds that it does not come.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from server.engines.events import PromptToken, RankedToken

LEAST_LOGPROB = -9999.0
"""OpenAI's stand-in for minus infinity, which JSON cannot hold."""


def finite(logprob: float) -> float:
    """As JSON can hold it."""
    return logprob if logprob > LEAST_LOGPROB else LEAST_LOGPROB  # a NaN too


class TokenRow(NamedTuple):
    """One token in a completion's log-probabilities."""

    token: str
    logprob: float | None
    top: dict[str, float] | None


@dataclass(frozen=True)
class Echo:
    """A prompt that comes back before its answer, with `alternatives` to each token, None without log-probabilities."""

    text: str
    tokens: tuple[str, ...]
    alternatives: int | None

    def rows(self, prompt: Sequence[PromptToken], stand_in: str) -> list[TokenRow] | None:
        """A row for each token. Of an abstained answer there is no `prompt`."""
        if self.alternatives is None:
            return None
        rows = [TokenRow(self.tokens[0], None, None)]
        for token, told in zip(self.tokens[1:], prompt[1:] or [PromptToken()] * (len(self.tokens) - 1), strict=True):
            if told.itself is None:
                rows.append(TokenRow(token, LEAST_LOGPROB, {stand_in: 0.0, token: LEAST_LOGPROB}))
                continue
            logprob = finite(told.itself.logprob)
            top = {each.token: finite(each.logprob) for each in told.top[: self.alternatives]}
            rows.append(TokenRow(token, logprob, {**top, token: logprob}))
        return rows


def stand_in_row(text: str) -> TokenRow:
    """The operator's text in the place of an abstained answer."""
    return TokenRow(text, 0.0, {text: 0.0})


def prompt_logprobs(prompt: Sequence[PromptToken], alternatives: int) -> list[dict[str, object] | None]:
    """vLLM's form: null, or an object by token id."""
    return [
        None
        if told.itself is None
        else {str(each.token_id): _ranked(each) for each in (told.itself, *told.top[:alternatives])}
        for told in prompt
    ]


def _ranked(token: RankedToken) -> dict[str, object]:
    return {"logprob": finite(token.logprob), "rank": token.rank, "decoded_token": token.token}
