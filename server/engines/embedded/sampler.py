"""Judging and drawing, at the one place of transformers' continuous batching that sees both rows and logits.

The batcher calls its list of logits processors once per step, with the logits of every position it is about to
sample. This list does the whole step itself: it takes the guards' readings of that forward pass, judges each row
under its request's policy, draws a token for the rows that may go on, as their own options say, puts the sentinel in
the place of the others', and hands back scores that leave the batcher's argmax nothing to choose. Nothing runs after it
that a request could influence.
"""

import threading
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList
from transformers.generation.continuous_batching.cb_logits_processors import ContinuousBatchingLogitsProcessorList

from guards.contract.columns import Columns
from guards.core.verdict import Verdict
from guards.inside.transformers.attach import Rows
from server.engines.answer_state import GuardFacts
from server.engines.base import TokenLogprob
from server.engines.embedded.answer_state import EmbeddedAnswerState
from server.engines.embedded.processors import draw_token

TokenText = Callable[[int], tuple[str, bytes]]


class JudgingSampler(ContinuousBatchingLogitsProcessorList):  # type: ignore[misc]
    """Replaces the batcher's list of logits processors.

    `take_rows(n)` gives what guards say of the first n logits rows of the forward pass that just ran.
    `sentinel` is the token id that ends a suppressed answer; a model never draws it itself unless it is among
    `stop_ids`.
    """

    def __init__(
        self,
        facts: Mapping[str, GuardFacts],
        columns: Columns,
        take_rows: Callable[[int], Rows],
        token_text: TokenText,
        sentinel: int,
        stop_ids: frozenset[int],
    ) -> None:
        super().__init__(LogitsProcessorList())
        self.do_processing = True
        self._facts = facts
        self._columns, self._take_rows = columns, take_rows
        self._token_text = token_text
        self._sentinel = sentinel
        self._mask_sentinel = sentinel not in stop_ids
        self._answers: dict[str, EmbeddedAnswerState] = {}
        self._lock = threading.Lock()
        self._batch: list[EmbeddedAnswerState | None] = []
        self._states: list[Any] = []
        """The batcher's own state of each row's request."""

    def add(self, answer: EmbeddedAnswerState) -> None:
        """Makes a request known; must happen before it is queued."""
        with self._lock:
            self._answers[answer.request.request_id] = answer

    def discard(self, request_id: str) -> None:
        """Forgets a request. A step that still runs for it yields the sentinel."""
        with self._lock:
            self._answers.pop(request_id, None)

    def prepare_tensor_args(self, requests_in_batch: list[Any], arg_storage: Tensor) -> Tensor:
        """Called before each forward pass with the batch's requests; remembers which will be sampled, in order."""
        self._states = [future.state for future in requests_in_batch if future.has_new_token]
        with self._lock:
            self._batch = [self._answers.get(state.request_id) for state in self._states]
        return arg_storage

    def __call__(self, input_ids: Tensor, scores: Tensor, logits_processor_args: Tensor) -> Tensor:
        """`scores` float32 [rows, vocabulary], possibly with unused rows at the end; returns one-hot scores."""
        batch, self._batch = self._batch, []
        judged = self._judge(batch, self._take_rows(len(batch)))
        tokens = self._draw(scores, batch, judged)
        scores.fill_(-torch.inf)
        if tokens:
            chosen = torch.tensor(tokens, device=scores.device).unsqueeze(1)
            scores[: len(tokens)].scatter_(1, chosen, 0.0)
        return scores

    def _judge(self, batch: list[EmbeddedAnswerState | None], rows: Rows) -> list[bool]:
        """Which rows may draw a token."""
        live = {index: answer for index, answer in enumerate(batch) if answer is not None}
        taus = self._columns.taus([answer.request.policy for answer in live.values()])
        readings = self._columns.readings(rows.rows_RX[list(live)], taus, rows.missing)
        judged = {
            index: answer.judge(self._facts, reading)
            for (index, answer), reading in zip(live.items(), readings, strict=True)
        }
        return [judged.get(index) is Verdict.ALLOW for index in range(len(batch))]

    def _draw(self, scores: Tensor, batch: list[EmbeddedAnswerState | None], allowed: list[bool]) -> list[int]:
        """A token id per row, the sentinel where the row may not draw."""
        if not batch:
            return []
        logits = scores[: len(batch)]
        finite = torch.isfinite(logits.amax(dim=-1)).tolist()
        if self._mask_sentinel:
            logits[:, self._sentinel] = -torch.inf
        greedy = logits.argmax(dim=-1).tolist()
        tokens = []
        for index, answer in enumerate(batch):
            if answer is None or not allowed[index]:
                tokens.append(self._withhold(index))
                continue
            if not finite[index]:
                answer.fail("the model's logits are not finite")
                tokens.append(self._withhold(index))
                continue
            try:
                tokens.append(self._draw_for(answer, logits[index], greedy[index]))
            except Exception as error:  # one request's numbers must not end the batch of everybody
                answer.fail(f"drawing a token failed: {error!r}")
                tokens.append(self._withhold(index))
        return tokens

    def _withhold(self, row: int) -> int:
        """The sentinel. It ends the row's request in the batcher, also where the request ignores what else ends it."""
        self._states[row]._eos_token_ids.add(self._sentinel)
        return self._sentinel

    def _draw_for(self, answer: EmbeddedAnswerState, logits_V: Tensor, greedy: int) -> int:
        """Draws one row's token and keeps its log-probabilities. Raises ValueError where none may be drawn."""
        sampling, steering, adjusted_V = answer.request.sampling, answer.steering, logits_V
        if steering is not None:
            logits_V = steering.constrain(logits_V)
            adjusted_V = steering.adjust(logits_V)
            if self._mask_sentinel:  # again: no option brings it back
                adjusted_V[self._sentinel] = -torch.inf
            greedy = int(adjusted_V.argmax())
            if not torch.isfinite(adjusted_V[greedy]):
                raise ValueError("the request's options leave no token")
        token = greedy if sampling.temperature == 0 else draw_token(adjusted_V, sampling, answer.generator)
        if steering is not None:
            steering.take(token)
        if sampling.logprobs is not None:
            answer.logprobs.append(self._logprobs(logits_V, token, sampling.logprobs))
        answer.generated += 1
        return token

    def _logprobs(self, logits_V: Tensor, token: int, count: int) -> TokenLogprob:
        """Log-probabilities before all but a grammar, of the drawn token and the `count` most likely."""
        logprobs_V = logits_V.log_softmax(dim=-1)
        text, raw = self._token_text(token)
        top = []
        if count:
            best = logprobs_V.topk(min(count, logprobs_V.numel()))
            for value, index in zip(best.values.tolist(), best.indices.tolist(), strict=True):
                top.append((*self._token_text(index), value))
        return TokenLogprob(text, raw, float(logprobs_V[token]), tuple(top))
