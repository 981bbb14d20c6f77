"""What one request's options do to its logits, in vLLM's order, before a token is drawn.

Suffixes: L tokens of prompt and answer, V vocabulary. Each answer has its own Steering, which sees its own row only.
Whether a token may be drawn at all was decided before: a row that a guard withholds does not come here.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TopKLogitsWarper,
)

from server.engines.embedded.grammars import Match
from server.engines.request import EngineRequest, Sampling


class OccurrencePenalties(LogitsProcessor):  # type: ignore[misc]
    """OpenAI's presence and frequency penalties, over the answer so far. transformers has none."""

    def __init__(self, presence: float, frequency: float) -> None:
        self._presence, self._frequency = presence, frequency

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        counts_V = torch.bincount(input_ids[0], minlength=scores.shape[-1]).to(scores.dtype)
        return scores - self._frequency * counts_V - self._presence * (counts_V > 0)


class AllowedTokens(LogitsProcessor):  # type: ignore[misc]
    """Nothing but some tokens. transformers' own of this kind makes tokens possible again that were ruled out."""

    def __init__(self, allowed: Sequence[int], device: torch.device) -> None:
        self._ids = torch.tensor(allowed, dtype=torch.int64, device=device)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return torch.full_like(scores, -torch.inf).index_copy_(1, self._ids, scores[:, self._ids])


class TokenBiases(LogitsProcessor):  # type: ignore[misc]
    """What is added to single tokens. transformers' own goes over all of them in Python, when it is made and at every
    token, which holds up the event loop and the batch of everybody where they are many thousand.
    """

    def __init__(self, biases: Mapping[int, float], device: torch.device) -> None:
        self._ids = torch.tensor(list(biases), dtype=torch.int64, device=device)
        self._biases = torch.tensor(list(biases.values()), dtype=torch.float32, device=device)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return scores.index_add(1, self._ids, self._biases.to(scores.dtype)[None])


class BadWords(LogitsProcessor):  # type: ignore[misc]
    """No word's last token behind its others. transformers' own compares word by word in Python at every token.

    Suffixes: W words, P tokens of the longest but its last.
    """

    _ANY, _NONE = -1, -2

    def __init__(self, words: Sequence[Sequence[int]], device: torch.device) -> None:
        most = max(map(len, words)) - 1
        before = [[self._ANY] * (most - len(word) + 1) + list(word[:-1]) for word in words]
        self._before_WP = torch.tensor(before, dtype=torch.int64, device=device).view(len(words), most)
        self._last_W = torch.tensor([word[-1] for word in words], dtype=torch.int64, device=device)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        most = self._before_WP.shape[1]
        drawn_L = torch.nn.functional.pad(input_ids[0], (most, 0), value=self._NONE)
        tail_P = drawn_L[len(drawn_L) - most :]
        completed_W = ((self._before_WP == tail_P) | (self._before_WP == self._ANY)).all(dim=1)
        ruled_out_W = torch.zeros_like(self._last_W, dtype=scores.dtype).masked_fill_(completed_W, -torch.inf)
        return scores.index_add(1, self._last_W, ruled_out_W[None])


class Steering:
    """The options of one answer that look at what was drawn before, or at single tokens.

    `stops` are all ids that may end the answer.
    """

    def __init__(
        self,
        request: EngineRequest,
        bad_words: Sequence[Sequence[int]],
        stops: frozenset[int],
        match: Match | None,
        device: torch.device,
    ) -> None:
        sampling, prompt = request.sampling, request.prompt_token_ids
        self._match = match
        self._ids_L = torch.empty(len(prompt) + sampling.max_tokens, dtype=torch.int64, device=device)
        self._ids_L[: len(prompt)] = torch.tensor(prompt)
        self._prompt = self._length = len(prompt)
        self._processors = _processors(sampling, bad_words, device)
        self._minimum = (
            MinNewTokensLengthLogitsProcessor(0, sampling.min_tokens, sorted(stops), device=str(device))
            if sampling.min_tokens
            else None
        )
        self._repetition = (
            RepetitionPenaltyLogitsProcessor(float(sampling.repetition_penalty))
            if sampling.repetition_penalty != 1
            else None
        )
        self._occurrence = (
            OccurrencePenalties(sampling.presence_penalty, sampling.frequency_penalty)
            if sampling.presence_penalty or sampling.frequency_penalty
            else None
        )

    def constrain(self, logits_V: Tensor) -> Tensor:
        """The logits of what the grammar allows; log-probabilities are of these, as vLLM's are."""
        return logits_V if self._match is None else self._match.constrain(logits_V)

    def adjust(self, logits_V: Tensor) -> Tensor:
        """The logits to draw from. All are minus infinity where the options leave no token."""
        scores_1V = logits_V.unsqueeze(0)
        ids_1L = self._ids_L[: self._length].unsqueeze(0)
        drawn_1L = ids_1L[:, self._prompt :]
        for processor in self._processors:
            scores_1V = processor(drawn_1L, scores_1V)
        if self._minimum is not None:
            longer_1V = self._minimum(drawn_1L, scores_1V)
            # A grammar that is complete allows nothing but an end.
            if self._match is None or not bool(torch.isneginf(longer_1V).all()):
                scores_1V = longer_1V
        if self._repetition is not None:
            scores_1V = self._repetition(ids_1L, scores_1V)
        if self._occurrence is not None:
            scores_1V = self._occurrence(drawn_1L, scores_1V)
        return scores_1V[0]

    def take(self, token: int) -> None:
        """What was drawn. Raises ValueError where the grammar does not allow it."""
        if self._length < len(self._ids_L):
            self._ids_L[self._length] = token
            self._length += 1
        if self._match is not None:
            self._match.accept(token)


def steers(sampling: Sampling) -> bool:
    """Whether an answer needs a Steering."""
    return bool(
        sampling.frequency_penalty
        or sampling.presence_penalty
        or sampling.repetition_penalty != 1
        or sampling.logit_bias
        or sampling.allowed_token_ids
        or sampling.bad_words
        or sampling.min_tokens
        or sampling.grammar is not None
    )


def _processors(sampling: Sampling, bad_words: Sequence[Sequence[int]], device: torch.device) -> list[LogitsProcessor]:
    """Those that say which tokens may come, and how much likelier each is."""
    found: list[LogitsProcessor] = []
    if sampling.allowed_token_ids:
        found.append(AllowedTokens(sampling.allowed_token_ids, device))
    if bad_words:
        found.append(BadWords(bad_words, device))
    if sampling.logit_bias:
        found.append(TokenBiases(sampling.logit_bias, device))
    return found


def draw_token(logits_V: Tensor, sampling: Sampling, generator: torch.Generator | None) -> int:
    """Draws from one row's logits with temperature, min-p, top-k and top-p. The most likely token always stays."""
    scores_1V = (logits_V / max(sampling.temperature, 1e-5)).unsqueeze(0)
    if sampling.min_p:
        scores_1V = MinPLogitsWarper(float(sampling.min_p))(None, scores_1V)
    if sampling.top_k:
        scores_1V = TopKLogitsWarper(sampling.top_k)(None, scores_1V)
    probabilities = scores_1V[0].softmax(dim=-1)
    if sampling.top_p >= 1.0:
        return int(torch.multinomial(probabilities, 1, generator=generator))
    ordered, order = probabilities.sort(descending=True)
    outside = ordered.cumsum(dim=-1) - ordered >= sampling.top_p
    outside[0] = False
    ordered[outside] = 0.0
    return int(order[torch.multinomial(ordered, 1, generator=generator)])
