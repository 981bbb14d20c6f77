"""Finds turns in a forward pass, by its tokens and those before them alone.

Suffixes: T tokens of a forward pass, S sequences, H tokens before a sequence's first new one, P patterns, L tokens of
the longest pattern. Nothing here waits for the device.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from guards.contract.accumulate import OverTokens
from guards.contract.running import RunningStates
from guards.contract.slots import HISTORY, Links
from guards.contract.turns import Stretches, Turns, last_row, one_message
from guards.model.openings import LONGEST, Opening

assert LONGEST <= HISTORY
_ANY, _NONE = -2, -1
_ASKED, _WRITTEN = 1, 2
_SIDES = 3


@dataclass(frozen=True)
class _Sides(OverTokens):
    """The sides of the last two messages: 0 for none, _ASKED or _WRITTEN. It reads both as one number."""

    neutral: ClassVar[tuple[float, ...]] = (0.0, 0.0)

    def lift(self, values_TC: Tensor, turns: Turns) -> Tensor:
        return torch.stack([values_TC.double(), torch.zeros_like(values_TC, dtype=torch.float64)], dim=-1)

    def within(self, values_TC: Tensor, stretches: Stretches) -> Tensor:
        """Of the newest row with a side, and of the newest before that."""
        side_CT, start_T = values_TC.T.double(), stretches.start_T
        last_CT = last_row(side_CT > 0)
        before_CT = pad(last_CT[:, :-1], (1, 0), value=-1).gather(-1, last_CT.clamp_min(0))
        rows_NCT = torch.stack([last_CT, before_CT])
        sides_NCT = side_CT.expand_as(rows_NCT).gather(-1, rows_NCT.clamp_min(0)).masked_fill(rows_NCT < start_T, 0.0)
        return sides_NCT.permute(2, 1, 0)

    def join(self, before_NCK: Tensor, after_NCK: Tensor) -> Tensor:
        earlier_NC, last_NC = before_NCK[..., 1], before_NCK[..., 0]
        newer_NC, newest_NC = after_NCK[..., 1], after_NCK[..., 0]
        second_NC = torch.where(newest_NC == 0, earlier_NC, torch.where(newer_NC == 0, last_NC, newer_NC))
        return torch.stack([torch.where(newest_NC == 0, last_NC, newest_NC), second_NC], dim=-1)

    def read(self, values_TC: Tensor, state_TCK: Tensor) -> Tensor:
        return (state_TCK[..., 0] + _SIDES * state_TCK[..., 1]).float()


class TurnFinder:
    """What the tokens so far end with, and where whose message began. Keeps tokens and sides at cache slots.

    `openings` are a template's (`guards.model.openings`); without any, all is one message. With `whole`, they are still
    no text of anybody, and all of a conversation is one message too.
    """

    def __init__(self, openings: Sequence[Opening], device: torch.device, *, whole: bool = False) -> None:
        patterns: dict[tuple[int, ...], int] = {}
        for opening in openings:
            for size in range(1, len(opening.tokens) + 1):
                patterns.setdefault(opening.tokens[:size], 0)
        for opening in () if whole else openings:
            patterns[opening.tokens[: opening.named]] = _WRITTEN if opening.written else _ASKED
        longest = max(map(len, patterns), default=1)
        table = [[_ANY] * (longest - len(each)) + list(each) for each in patterns]
        self._pattern_PL = torch.tensor(table, dtype=torch.int64, device=device).reshape(len(patterns), longest)
        self._side_P = torch.tensor(list(patterns.values()), dtype=torch.float32, device=device)
        self._back_L = torch.arange(longest - 1, -1, -1, device=device)
        self._sides = RunningStates([_Sides()], device)
        self._tokens = torch.full((1,), _NONE, dtype=torch.int64, device=device)
        """[1 + slots]: the token at every slot. Row 0 takes what is not kept and is never read."""

    def reserve(self, slots: int) -> None:
        """Makes room for slots 0 to `slots` - 1, as `RunningStates.reserve`."""
        if 1 + slots > len(self._tokens):
            more = self._tokens.new_full((1 + slots - len(self._tokens),), _NONE)
            self._tokens = torch.cat([self._tokens, more])
        self._sides.reserve(slots)

    def find(self, ids_T: Tensor, links: Links) -> Turns:
        """The turns of a pass's tokens, of any integer type, which it keeps.

        In a sequence that cannot be followed they mean nothing.
        """
        ids_T, positions_T = ids_T.long(), links.positions_T
        if not len(self._pattern_PL):
            return one_message(positions_T)
        if links.highest >= len(self._tokens) - 1:
            self.reserve(max(links.highest + 1, 2 * len(self._tokens)))
        self._tokens[links.slots_T] = ids_T
        ends_TP = self._ends(ids_T, links)
        side_T = (ends_TP * self._side_P).amax(dim=1)
        code_T = self._sides.extend(side_T[:, None], links, one_message(positions_T))[:, 0].nan_to_num()
        last_T, earlier_T = code_T % _SIDES, torch.div(code_T, _SIDES, rounding_mode="floor")
        opens_T = side_T > 0
        counted_T = (positions_T > 0) & ~ends_TP.any(dim=1)
        return Turns(counted_T, opens_T, opens_T & (last_T != earlier_T), last_T == _WRITTEN)

    def _ends(self, ids_T: Tensor, links: Links) -> Tensor:
        """Which patterns the tokens up to each one end with, bool [T, P]."""
        at_TL = torch.arange(len(ids_T), device=ids_T.device)[:, None] - self._back_L
        slots_SH = links.before_SH
        before_SH = torch.where(slots_SH >= 0, self._tokens[slots_SH.clamp_min(-1) + 1], _NONE)
        # One sequence more, for padding.
        before_SH = torch.cat([before_SH, before_SH.new_full((1, before_SH.shape[1]), _NONE)])
        back_TL = (at_TL - links.start_T[:, None]).clamp(-before_SH.shape[1], -1)
        earlier_TL = before_SH[links.sequence_T[:, None], back_TL]  # from the end
        here_TL = at_TL >= links.start_T[:, None]
        token_TL = torch.where(here_TL, ids_T[at_TL.clamp_min(0)], earlier_TL)
        wanted_1PL = self._pattern_PL[None]
        return ((token_TL[:, None] == wanted_1PL) | (wanted_1PL == _ANY)).all(dim=-1)
