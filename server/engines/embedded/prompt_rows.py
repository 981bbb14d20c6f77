"""Logits inside prompts, which the batcher does not compute: it asks the model for the rows to sample and no others.

Suffixes: S rows that the batcher asks for, P rows of prompts, V vocabulary, T tokens of the pass.

For a pass with such a prompt in it, the model is asked for more rows, behind the batcher's, which are taken off before
the batcher sees them. Guards see them among `logits_to_keep`, so each is judged like a row that is sampled.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from server.engines.embedded.answer_state import EmbeddedAnswerState


class PromptPart(NamedTuple):
    """A part of one prompt in a forward pass: positions `first` to `last` - 1, from row `row` of the pass on."""

    answer: EmbeddedAnswerState
    first: int
    last: int
    row: int


class PromptRows:
    """Put on a model, has it compute what `plan` asks of the next pass. `remove` takes it off."""

    def __init__(self, model: nn.Module) -> None:
        # Before the guards' own hook, which is to see the rows that are added.
        self._hooks = [
            model.register_forward_pre_hook(self._ask, with_kwargs=True, prepend=True),
            model.register_forward_hook(self._take_off),
        ]
        self._parts: Sequence[PromptPart] = ()
        self._asked = 0
        self._logits_PV: Tensor | None = None

    def remove(self) -> None:
        """Takes the hooks off. Safe to call twice."""
        for hook in self._hooks:
            hook.remove()

    def plan(self, parts: Iterable[PromptPart]) -> None:
        """What the next pass is to compute beside the batcher's rows."""
        self._parts, self._logits_PV, self._asked = tuple(parts), None, 0

    def take(self) -> tuple[Sequence[PromptPart], Tensor | None, int]:
        """The planned parts, their logits one after another, and how many rows the batcher asked for; forgets them.

        The logits are None where the pass did not compute them.
        """
        taken = self._parts, self._logits_PV, self._asked
        self.plan(())
        return taken

    def _ask(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        rows_S = kwargs.get("logits_to_keep")
        if not self._parts or not isinstance(rows_S, Tensor):
            return None
        self._asked = len(rows_S)
        more = [torch.arange(part.row, part.row + part.last - part.first) for part in self._parts]
        rows_P = torch.cat(more).to(rows_S)
        return args, {**kwargs, "logits_to_keep": torch.cat([rows_S, rows_P])}

    def _take_off(self, _: nn.Module, __: Any, output: Any) -> Any:
        if self._asked:
            self._logits_PV = output.logits[0, self._asked :].float()
            output.logits = output.logits[:, : self._asked]
        return output
