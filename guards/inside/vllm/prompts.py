"""Judges the places inside a prompt whose log-probabilities a request asks for, and blots out what is withheld.

Suffixes: L tokens of a prompt, R rows, X entries of a row, G guards.

A log-probability there tells what the model would have drawn, so each place is judged as if the prompt ended at it.
vLLM's model runner computes these logits for itself, after the step's own; their rows come off the hidden states like
those of sampled tokens.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from guards.contract.columns import Columns
from guards.core.judge import withheld
from guards.core.verdict import Reading
from guards.errors import AttachError, GuardReadingError
from guards.inside.vllm.events import PromptReport
from guards.inside.vllm.sampler import WithholdingSampler


@dataclass
class _Prompt:
    """One prompt, of which a step may compute a part; a part that is computed again is judged again."""

    judged: set[int] = field(default_factory=set)
    told: dict[int, tuple[float, ...]] = field(default_factory=dict)
    withheld: set[int] = field(default_factory=set)


class PromptJudge:
    """Stands around the model runner's own computation of prompts' log-probabilities.

    Raises AttachError where the runner has none of the kind.
    """

    def __init__(self, runner: Any, sampler: WithholdingSampler, columns: Columns, sentinel: int) -> None:
        for attribute in ("_get_prompt_logprobs_dict", "num_prompt_logprobs"):
            if not hasattr(runner, attribute):
                raise AttachError(f"{type(runner).__name__} has no {attribute}: prompts could not be judged inside")
        self._runner, self._sampler, self._columns, self._sentinel = runner, sampler, columns, sentinel
        self._compute = runner._get_prompt_logprobs_dict
        self._prompts: dict[str, _Prompt] = {}
        self._reports: dict[str, PromptReport] = {}
        self._heard: list[Tensor] | None = None
        runner._get_prompt_logprobs_dict = self._judged

    def hear(self, rows_RX: Tensor) -> bool:
        """Takes rows whose logits are computed, where they are of a prompt's inside."""
        if self._heard is None:
            return False
        self._heard.append(rows_RX)
        return True

    def take(self) -> Mapping[str, PromptReport]:
        """Prompts that were computed to their end in the last step; forgets them."""
        reports, self._reports = self._reports, {}
        return reports

    def _judged(self, hidden_states: Tensor, num_scheduled_tokens: Mapping[str, int]) -> Any:
        """As the runner's own. Raises GuardReadingError where a place has no row."""
        wanted = dict(self._parts(num_scheduled_tokens))
        self._heard = []
        try:
            found = self._compute(hidden_states, num_scheduled_tokens)
            heard = self._heard
        finally:
            self._heard = None
        if [len(rows) for rows in heard] != [len(places) for places in wanted.values()]:
            raise GuardReadingError("vLLM computed log-probabilities of other places of prompts than guards judged")
        for (request, places), rows_RX in zip(wanted.items(), heard, strict=True):
            self._judge(request, places, rows_RX)
        for request, tensors in found.items():
            prompt = self._prompts.pop(request, _Prompt())
            self._blot(tensors, sorted(prompt.withheld))
            self._reports[request] = PromptReport(len(prompt.judged), tuple(sorted(prompt.told.items())))
        for request in self._prompts.keys() - self._runner.num_prompt_logprobs.keys():
            del self._prompts[request]  # given up by its caller
        return found

    def _parts(self, num_scheduled_tokens: Mapping[str, int]) -> Iterator[tuple[str, range]]:
        """The places of which the runner is about to compute logits, in its order."""
        for request in self._runner.num_prompt_logprobs:
            state, tokens = self._runner.requests[request], num_scheduled_tokens.get(request, 0)
            start = state.num_computed_tokens
            end = min(start + tokens, len(state.prompt_token_ids) - 1)
            if end > start:
                yield request, range(start, end)

    def _judge(self, request: str, places: range, rows_RX: Tensor) -> None:
        enforced_RG, tau_RP = self._sampler.rules_of([request] * len(places), [0] * len(places))
        rows_RX = rows_RX.to("cpu")
        code_RG = self._columns.read(self._columns.parts(rows_RX), tau_RP)
        withheld_R = withheld(code_RG, enforced_RG)
        told_R = (code_RG != int(Reading.OUTSIDE)).any(dim=1) | withheld_R
        prompt = self._prompts.setdefault(request, _Prompt())
        for place, row, is_told, is_withheld in zip(
            places, rows_RX.tolist(), told_R.tolist(), withheld_R.tolist(), strict=True
        ):
            prompt.judged.add(place)
            prompt.told.pop(place, None)
            prompt.withheld.discard(place)
            if is_told:
                prompt.told[place] = tuple(row)
            if is_withheld:
                prompt.withheld.add(place)

    def _blot(self, tensors: Any, places: list[int]) -> None:
        """NaN says that it is withheld; the sentinel stands in the place of tokens."""
        at = torch.tensor(places, dtype=torch.int64)
        tensors.logprobs[at] = torch.nan
        tensors.logprob_token_ids[at] = self._sentinel
        tensors.selected_token_ranks[at] = 0
