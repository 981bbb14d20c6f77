"""Draws as vLLM does, then puts the sentinel in the place of every token that a guard withholds.

Suffixes: R rows, X entries of a row, P parts, G guards.

Nothing a request can ask for runs after this: logit bias, grammars, penalties and minimum lengths have had their say
when the drawn token is replaced.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from guards.contract.columns import Columns
from guards.core.judge import withheld
from guards.core.policy import Policy, Rule
from guards.core.verdict import GuardMode, Reading, Stage
from guards.errors import GuardReadingError
from guards.inside.vllm.events import POLICY, Acted, PromptReport, RowReport, StepReport


@dataclass
class Judged:
    """What was judged in one step, on its way to the host.

    `keep_R` is False for rows whose draw vLLM discards (unfinished prompts); `acted_RP` is what interventions did;
    `ready` is an event to wait for, where the results come from a GPU; `prompts` are those judged inside in this step.
    """

    request_ids: Sequence[str]
    generated_R: Any
    keep_R: Any
    rows_RX: Tensor
    code_RG: Tensor
    withheld_R: Tensor
    acted_RP: Tensor
    ready: Any
    prompts: Mapping[str, PromptReport] = field(default_factory=dict)

    def report(self) -> StepReport:
        """What the scheduler hears. Waits for the results."""
        if self.ready is not None:
            self.ready.synchronize()
        code_RG, withheld_R = self.code_RG.numpy(), self.withheld_R.numpy()
        full_R = (self.generated_R == 0) | (code_RG != int(Reading.OUTSIDE)).any(axis=1) | withheld_R
        rows = {
            self.request_ids[row]: RowReport(
                int(self.generated_R[row]), tuple(self.rows_RX[row].tolist()), bool(withheld_R[row])
            )
            for row in (full_R & self.keep_R).nonzero()[0]
        }
        acted_RP = self.acted_RP.numpy()
        acted = {
            self.request_ids[row]: Acted(int(self.generated_R[row]), tuple(acted_RP[row].tolist()))
            for row in (~full_R & self.keep_R & (acted_RP > 0).any(axis=1)).nonzero()[0]
        }
        return StepReport(frozenset(self.request_ids), rows, acted, dict(self.prompts))


class _Rules(NamedTuple):
    """A request's policy as tensors: where a hit is enforced, by stage, and every part's tau."""

    enforced_G: Mapping[Stage, Tensor]
    tau_P: Tensor


class WithholdingSampler(nn.Module):
    """Stands in for a model runner's sampler; what it does not have, the inner one has.

    `defaults` are the guards' own rules, under which a request stands that brings none.
    """

    def __init__(
        self, inner: nn.Module, runner: Any, columns: Columns, defaults: Mapping[str, Rule], sentinel: int
    ) -> None:
        super().__init__()
        self.inner = inner
        self._runner, self._columns, self._sentinel = runner, columns, sentinel
        self._defaults = defaults
        self._rows: Tensor | None = None
        self._judged: Judged | None = None

    def judge_by_default(self, defaults: Mapping[str, Rule]) -> None:
        """Other guards' own rules, of as many parts."""
        self._defaults = defaults
        WithholdingSampler._rules.cache_clear()

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)

    def put(self, rows_RX: Tensor) -> None:
        """The rows whose logits were just computed."""
        self._rows = rows_RX

    def take(self) -> Judged | None:
        """What the last step judged, None when it sampled nothing; forgets it."""
        judged, self._judged = self._judged, None
        self._rows = None
        return judged

    def forward(self, logits: Tensor, sampling_metadata: Any, **options: Any) -> Any:
        """As vLLM's sampler. Raises GuardReadingError when there is not a row for every row of logits."""
        output = self.inner(logits=logits, sampling_metadata=sampling_metadata, **options)
        batch = self._runner.input_batch
        if batch.num_reqs == 0:  # vLLM sizes its memory with made-up logits; no request gets anything of these
            return output
        rows_RX, self._rows = self._rows, None
        sampled = output.sampled_token_ids
        if rows_RX is None or not rows_RX.shape[0] == logits.shape[0] == sampled.shape[0] == batch.num_reqs:
            raise GuardReadingError(
                f"got {None if rows_RX is None else rows_RX.shape[0]} rows of guards, logits for {logits.shape[0]} "
                f"and {batch.num_reqs} requests: the sampler ran around the guards"
            )
        rows = batch.num_reqs
        generated_R = batch.num_tokens_no_spec[:rows] - batch.num_prompt_tokens[:rows]
        code_RG, withheld_R, acted_RP = self._judge(rows_RX, batch.req_ids[:rows], generated_R.tolist())
        if self._columns.guards:
            output.sampled_token_ids = torch.where(withheld_R[:, None], self._sentinel, sampled)
            if output.logprobs_tensors is not None:
                output.logprobs_tensors.logprobs.masked_fill_(withheld_R[:, None], -torch.inf)
                output.logprobs_tensors.logprob_token_ids.masked_fill_(withheld_R[:, None], self._sentinel)
                output.logprobs_tensors.selected_token_ranks.masked_fill_(withheld_R, 0)
        on_host = [x.to("cpu", non_blocking=True) for x in (rows_RX, code_RG, withheld_R, acted_RP)]
        ready = None
        if rows_RX.device.type == "cuda":
            ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
            ready.record()
        self._judged = Judged(
            request_ids=list(batch.req_ids[:rows]),
            generated_R=generated_R.copy(),
            keep_R=~self._runner.discard_request_mask.np[:rows],
            rows_RX=on_host[0],
            code_RG=on_host[1],
            withheld_R=on_host[2],
            acted_RP=on_host[3],
            ready=ready,
        )
        return output

    def _judge(
        self, rows_RX: Tensor, request_ids: Sequence[str], generated: Sequence[int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What each guard reads, int8 [R, G], where no token goes out, bool [R], and what interventions did, [R, P]."""
        if not self._columns.guards:  # a dozen operations on nothing are a twentieth of a small model's step
            nothing_R0 = rows_RX.new_empty(len(rows_RX), 0)
            return nothing_R0.to(torch.int8), rows_RX.new_zeros(len(rows_RX), dtype=torch.bool), nothing_R0
        enforced_RG, tau_RP = self.rules_of(request_ids, generated)
        part_RP = self._columns.parts(rows_RX)
        code_RG = self._columns.read(part_RP, tau_RP.to(part_RP.device, non_blocking=True))
        withheld_R = withheld(code_RG, enforced_RG.to(code_RG.device, non_blocking=True))
        return code_RG, withheld_R, part_RP[:, self._columns.health_parts]

    def rules_of(self, request_ids: Sequence[str], generated: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Where a hit is enforced, bool [R, G], and taus, float32 [R, P], by what each request brought."""
        rules = [
            self._rules((self._runner.requests[request].sampling_params.extra_args or {}).get(POLICY))
            for request in request_ids
        ]
        stages = [Stage.PROMPT if drawn == 0 else Stage.GENERATION for drawn in generated]
        enforced = [each.enforced_G[stage] for each, stage in zip(rules, stages, strict=True)]
        return torch.stack(enforced), torch.stack([each.tau_P for each in rules])

    @lru_cache(maxsize=4096)  # noqa: B019  one sampler lives as long as its process
    def _rules(self, text: str | None) -> _Rules:
        policy = (Policy() if text is None else Policy.parse(text)).over(self._defaults)
        enforced = {
            stage: torch.tensor(
                [
                    policy.rules[name].mode is GuardMode.ENFORCE and stage.within(policy.rules[name].scope)
                    for name in self._columns.guards
                ],
                dtype=torch.bool,
            )
            for stage in Stage
        }
        return _Rules(enforced, self._columns.taus([policy])[0])
