"""Judging and drawing, at the one place of transformers' continuous batching that sees both rows and logits.

The batcher calls its list of logits processors once per step, with the logits of every position it is about to
sample. This list does the whole step itself: it takes the guards' readings of that forward pass, judges each row
under its request's policy, draws a token for the rows that may go on, as their own options say, puts the sentinel in
the place of the others', and hands back scores that leave the batcher's argmax nothing to choose. Nothing runs after it
that a request could influence.
"""

import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList
from transformers.generation.continuous_batching.cb_logits_processors import ContinuousBatchingLogitsProcessorList

from guards.contract.columns import Columns, Said
from guards.core.verdict import Verdict
from guards.inside.transformers.attach import Rows
from server.engines.answer_state import GuardFacts
from server.engines.embedded.answer_state import EmbeddedAnswerState
from server.engines.embedded.processors import draw_token
from server.engines.embedded.prompt_rows import PromptPart, PromptRows
from server.engines.events import PromptToken, RankedToken, TokenLogprob

TokenText = Callable[[int], tuple[str, bytes]]


class JudgingSampler(ContinuousBatchingLogitsProcessorList):  # type: ignore[misc]
    """Replaces the batcher's list of logits processors.

    `take_rows(n)` gives what guards say of the first n logits rows of the forward pass that just ran.
    `sentinel` is the token id that ends a suppressed answer; a model never draws it itself unless it is among
    `stop_ids`. `switch` is told before each pass which interventions are off for which tokens.
    """

    def __init__(
        self,
        facts: Mapping[str, GuardFacts],
        columns: Columns,
        take_rows: Callable[[int], Rows],
        token_text: TokenText,
        sentinel: int,
        stop_ids: frozenset[int],
        prompts: PromptRows,
        switch: Callable[[Sequence[tuple[int, Collection[str]]]], object],
    ) -> None:
        super().__init__(LogitsProcessorList())
        self.do_processing = True
        self._facts = facts
        self._columns, self._take_rows = columns, take_rows
        self._all_are_read = facts.keys() <= set(columns.guards)
        """Else no row is quiet: a guard that has no column is missing."""
        self._token_text, self._prompts, self._switch = token_text, prompts, switch
        self._sentinel = sentinel
        self._mask_sentinel = sentinel not in stop_ids
        self._answers: dict[str, EmbeddedAnswerState] = {}
        self._salts: dict[tuple[str, frozenset[str]], int] = {("", frozenset()): 0}
        self._lock = threading.Lock()
        self._batch: list[EmbeddedAnswerState | None] = []
        self._states: list[Any] = []
        """The batcher's own state of each row's request."""

    def add(self, answer: EmbeddedAnswerState) -> None:
        """Makes a request known; must happen before it is queued."""
        with self._lock:
            self._answers[answer.request.request_id] = answer

    def reads_prompt(self, request_id: str) -> bool:
        """Whether all of a request's prompt must be computed, and nothing of it taken from a cache."""
        with self._lock:
            answer = self._answers.get(request_id)
        return answer is not None and (answer.request.proof or answer.request.sampling.prompt_logprobs is not None)

    def goes_first(self, request_id: str) -> bool:
        """Whether a request does not wait behind others."""
        with self._lock:
            answer = self._answers.get(request_id)
        return answer is not None and answer.request.proof

    def salt(self, request_id: str) -> int | None:
        """What tells its cached prefixes from others': a number for each tenant and set of interventions that are off.

        None for a request that is not known any more, whose last tokens may be computed otherwise than those before.
        """
        with self._lock:
            answer = self._answers.get(request_id)
            if answer is None:
                return None
            return self._salts.setdefault((answer.request.tenant, self._off(answer)), len(self._salts))

    def _off(self, answer: EmbeddedAnswerState | None) -> frozenset[str]:
        return frozenset() if answer is None else self._columns.switched_off(answer.request.policy)

    def discard(self, request_id: str) -> None:
        """Forgets a request. A step that still runs for it yields the sentinel."""
        with self._lock:
            self._answers.pop(request_id, None)

    def prepare_tensor_args(self, requests_in_batch: list[Any], arg_storage: Tensor) -> Tensor:
        """Called before each forward pass with the batch's requests; remembers which will be sampled, in order."""
        self._states = [future.state for future in requests_in_batch if future.has_new_token]
        with self._lock:
            self._batch = [self._answers.get(state.request_id) for state in self._states]
            everyone = [self._answers.get(future.state.request_id) for future in requests_in_batch]
        tokens = [future.query_length for future in requests_in_batch]
        self._switch([(count, self._off(answer)) for count, answer in zip(tokens, everyone, strict=True)])
        self._prompts.plan(_parts(requests_in_batch, everyone))
        return arg_storage

    def __call__(self, input_ids: Tensor, scores: Tensor, logits_processor_args: Tensor) -> Tensor:
        """`scores` float32 [rows, vocabulary], possibly with unused rows at the end; returns one-hot scores."""
        batch, self._batch = self._batch, []
        parts, logits_PV, asked = self._prompts.take()
        rows = self._take_rows(len(batch) if logits_PV is None else asked + len(logits_PV))
        self._tell(parts, logits_PV, Rows(rows.rows_RX[asked:], rows.missing))
        judged = self._judge(batch, Rows(rows.rows_RX[: len(batch)], rows.missing))
        tokens = self._draw(scores, batch, judged)
        scores.fill_(-torch.inf)
        if tokens:
            chosen = torch.tensor(tokens, device=scores.device).unsqueeze(1)
            scores[: len(tokens)].scatter_(1, chosen, 0.0)
        return scores

    def _judge(self, batch: list[EmbeddedAnswerState | None], rows: Rows) -> list[bool]:
        """Which rows may draw a token."""
        live = {index: answer for index, answer in enumerate(batch) if answer is not None}
        if not live:
            return [False] * len(batch)
        tau_RP = torch.stack([self._taus(answer) for answer in live.values()])
        said = self._columns.said(rows.rows_RX[list(live)], tau_RP, rows.missing)
        quiet = said.quiet().tolist() if self._all_are_read else [False] * len(live)
        judged = {
            index: self._judge_one(answer, said, row, quiet=quiet[row])
            for row, (index, answer) in enumerate(live.items())
        }
        return [judged.get(index) is Verdict.ALLOW for index in range(len(batch))]

    def _judge_one(self, answer: EmbeddedAnswerState, said: Said, row: int, *, quiet: bool) -> Verdict:
        """Goes over guards one by one only where there is something to tell of one."""
        if not quiet or answer.generated == 0:
            return answer.judge(self._facts, self._columns.reading(said, row))
        return answer.judge_quiet(self._columns.health, said.part_RP[row, self._columns.health_parts].tolist())

    def _taus(self, answer: EmbeddedAnswerState) -> Tensor:
        if answer.tau_P is None:
            (answer.tau_P,) = self._columns.taus([answer.request.policy])
        return answer.tau_P

    def _tell(self, parts: Sequence[PromptPart], logits_PV: Tensor | None, rows: Rows) -> None:
        """Keeps what may be told of prompts' tokens: where guards would have let the model draw one."""
        start = 0
        for part in parts:
            size = part.last - part.first
            here = slice(start, start + size)
            start += size
            try:
                if logits_PV is None:
                    raise RuntimeError("the pass did not compute them")
                self._tell_of(part, logits_PV[here], rows.rows_RX[here], rows.missing)
            except Exception as error:  # one request's numbers must not end the batch of everybody
                part.answer.fail(f"the prompt's log-probabilities failed: {error!r}")

    def _tell_of(self, part: PromptPart, logits_LV: Tensor, rows_LX: Tensor, missing: Collection[str]) -> None:
        answer, count = part.answer, part.answer.request.sampling.prompt_logprobs
        assert count is not None, "only prompts that are asked for are planned"
        taus = self._columns.taus([answer.request.policy])
        readings = self._columns.readings(rows_LX, taus.expand(len(rows_LX), -1), missing)
        for position, logits_V, reading in zip(range(part.first, part.last), logits_LV, readings, strict=True):
            told = answer.judge_prompt(self._facts, position, reading)
            token = answer.request.prompt_token_ids[position + 1]
            answer.prompt[position + 1] = self._prompt_token(logits_V, token, count) if told else PromptToken()

    def _prompt_token(self, logits_V: Tensor, token: int, count: int) -> PromptToken:
        """Raises ValueError where the logits are not finite."""
        if not torch.isfinite(logits_V.amax()):
            raise ValueError("the model's logits are not finite")
        logprobs_V = logits_V.log_softmax(dim=-1)
        rank = int((logprobs_V > logprobs_V[token]).sum()) + 1
        best = logprobs_V.topk(min(count, logprobs_V.numel()))
        top = [
            RankedToken(index, *self._token_text(index), value, place)
            for place, (value, index) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True), 1)
        ]
        itself = RankedToken(token, *self._token_text(token), float(logprobs_V[token]), rank)
        return PromptToken(itself, tuple(top))

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


def _parts(futures: Iterable[Any], answers: Iterable[EmbeddedAnswerState | None]) -> Iterator[PromptPart]:
    """The prompts' parts in a batch whose log-probabilities are asked for.

    The last token's place is the sampled row's. The batcher has counted this pass in `position_offset` already.
    """
    row = 0
    for future, answer in zip(futures, answers, strict=True):
        first, size = future.state.position_offset - future.query_length, future.query_length
        if answer is not None and answer.request.sampling.prompt_logprobs is not None and not answer.generated:
            last = min(first + size, len(answer.request.prompt_token_ids) - 1)
            if last > first:
                yield PromptPart(answer, first, last, row)
        row += size
