"""Draws as vLLM does, then puts the sentinel in the place of every token that a guard withholds.

Suffixes: R rows, C cells, G guards.

Nothing a request can ask for runs after this: logit bias, grammars, penalties and minimum lengths have had their say
when the drawn token is replaced.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from guards.contract.columns import Cells
from guards.core.verdict import Reading, Scope, Stage
from guards.errors import GuardReadingError
from guards.inside.vllm.events import SHADOW, RowReport, StepReport


@dataclass
class Judged:
    """What was judged in one step, on its way to the host.

    `keep_R` is False for rows whose draw vLLM discards (unfinished prompts); `counts` are the columns that count moved
    neurons; `ready` is an event to wait for, where the results come from a GPU.
    """

    request_ids: Sequence[str]
    generated_R: Any
    keep_R: Any
    cells_RC: Tensor
    codes_RG: Tensor
    withheld_R: Tensor
    counts: Sequence[int]
    ready: Any

    def told(self) -> StepReport:
        """What the scheduler hears. Waits for the results."""
        if self.ready is not None:
            self.ready.synchronize()
        codes_RG, cells_RC, withheld_R = self.codes_RG.numpy(), self.cells_RC.numpy(), self.withheld_R.numpy()
        full_R = (self.generated_R == 0) | (codes_RG != int(Reading.OUTSIDE)).any(axis=1) | withheld_R
        events = {
            self.request_ids[row]: RowReport(
                int(self.generated_R[row]), tuple(cells_RC[row].tolist()), bool(withheld_R[row])
            )
            for row in (full_R & self.keep_R).nonzero()[0]
        }
        moved: dict[str, int] = {}
        if self.counts:
            moved_R = cells_RC[:, list(self.counts)].sum(axis=1)
            rows = (~full_R & self.keep_R & (moved_R > 0)).nonzero()[0]
            moved = {self.request_ids[row]: int(moved_R[row]) for row in rows}
        return StepReport(frozenset(self.request_ids), events, moved)


class WithholdingSampler(nn.Module):
    """Stands in for a model runner's sampler; what it does not have, the inner one has."""

    def __init__(self, inner: nn.Module, runner: Any, cells: Cells, scopes: Mapping[str, Scope], sentinel: int) -> None:
        super().__init__()
        self.inner = inner
        self._runner, self._cells, self._sentinel = runner, cells, sentinel
        self._scopes = tuple(scopes[name] for name in cells.guards)
        self._rows: Tensor | None = None
        self._judged: Judged | None = None

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)

    def put(self, cells_RC: Tensor) -> None:
        """The cells of the rows whose logits were just computed."""
        self._rows = cells_RC

    def take(self) -> Judged | None:
        """What the last step judged, None when it sampled nothing; forgets it."""
        judged, self._judged = self._judged, None
        return judged

    def forward(self, logits: Tensor, sampling_metadata: Any, **options: Any) -> Any:
        """As vLLM's sampler. Raises GuardReadingError when there is not a row of cells for every row of logits."""
        output = self.inner(logits=logits, sampling_metadata=sampling_metadata, **options)
        batch = self._runner.input_batch
        if batch.num_reqs == 0:  # vLLM sizes its memory with made-up logits; no request gets anything of these
            return output
        cells_RC, self._rows = self._rows, None
        sampled = output.sampled_token_ids
        if cells_RC is None or not cells_RC.shape[0] == logits.shape[0] == sampled.shape[0] == batch.num_reqs:
            raise GuardReadingError(
                f"got cells for {None if cells_RC is None else cells_RC.shape[0]} rows, logits for {logits.shape[0]} "
                f"and {batch.num_reqs} requests: the sampler ran around the guards"
            )
        rows, requests = batch.num_reqs, self._runner.requests
        generated_R = batch.num_tokens_no_spec[:rows] - batch.num_prompt_tokens[:rows]
        enforced_RG = torch.tensor(
            [
                self._enforced(tuple((requests[request].sampling_params.extra_args or {}).get(SHADOW, ())), drawn == 0)
                for request, drawn in zip(batch.req_ids[:rows], generated_R.tolist(), strict=True)
            ],
            dtype=torch.bool,
        ).reshape(rows, len(self._scopes))
        codes_RG = self._cells.codes(cells_RC)
        withheld_R = self._withheld(codes_RG, enforced_RG.to(codes_RG.device, non_blocking=True))
        output.sampled_token_ids = torch.where(withheld_R[:, None], self._sentinel, sampled)
        if output.logprobs_tensors is not None:
            output.logprobs_tensors.logprobs.masked_fill_(withheld_R[:, None], -torch.inf)
            output.logprobs_tensors.logprob_token_ids.masked_fill_(withheld_R[:, None], self._sentinel)
            output.logprobs_tensors.selected_token_ranks.masked_fill_(withheld_R, 0)
        on_host = [tensor.to("cpu", non_blocking=True) for tensor in (cells_RC, codes_RG, withheld_R)]
        ready = None
        if cells_RC.device.type == "cuda":
            ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
            ready.record()
        self._judged = Judged(
            request_ids=list(batch.req_ids[:rows]),
            generated_R=generated_R.copy(),
            keep_R=~self._runner.discard_request_mask.np[:rows],
            cells_RC=on_host[0],
            codes_RG=on_host[1],
            withheld_R=on_host[2],
            counts=self._cells.counts,
            ready=ready,
        )
        return output

    def _withheld(self, codes_RG: Tensor, enforced_RG: Tensor) -> Tensor:
        """As `guards.core.verdict.decide`: all but OUTSIDE and INSIDE is an error in every mode."""
        outside_RG, inside_RG = codes_RG == int(Reading.OUTSIDE), codes_RG == int(Reading.INSIDE)
        return ((~outside_RG & ~inside_RG) | (inside_RG & enforced_RG)).any(dim=1)

    @lru_cache(maxsize=4096)  # noqa: B019  one sampler lives as long as its process
    def _enforced(self, shadow: tuple[str, ...], at_prompt: bool) -> tuple[bool, ...]:
        stage = Stage.PROMPT if at_prompt else Stage.GENERATION
        return tuple(
            name not in shadow and stage.within(scope)
            for name, scope in zip(self._cells.guards, self._scopes, strict=True)
        )
