"""Finds turns in a forward pass, by its tokens and those before them alone.

Suffixes: T tokens of a forward pass, S sequences, H tokens before a sequence's first new one, P patterns, L tokens of
the longest pattern. Nothing here waits for the device.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from guards.contract.accumulate import OverTokens
from guards.contract.running import RunningStates
from guards.contract.slots import HISTORY, Links
from guards.contract.turns import Stretches, Turns, last_row, one_message
from guards.model.openings import LONGEST, Opening

assert LONGEST <= HISTORY
_ANY, _NONE = -2, -1
_ASKED, _WRITTEN = 1, 2
_SIDES = 3
"""More than any side."""


@dataclass(frozen=True)
class _Side(OverTokens):
    """The side of the newest row that has one: 0 for none, _ASKED or _WRITTEN."""

    neutral: ClassVar[tuple[float, ...]] = (0.0,)

    def lift(self, values_TC: Tensor, turns: Turns) -> Tensor:
        return values_TC.double()[..., None]

    def within(self, values_TC: Tensor, stretches: Stretches) -> Tensor:
        side_CT, start_T = values_TC.T.double(), stretches.start_T
        last_CT = last_row(side_CT > 0)
        found_CT = side_CT.gather(-1, last_CT.clamp_min(0)).masked_fill(last_CT < start_T, 0.0)
        return found_CT.T[..., None]

    def join(self, before_NCK: Tensor, after_NCK: Tensor) -> Tensor:
        return torch.where(after_NCK == 0, before_NCK, after_NCK)

    def read(self, values_TC: Tensor, state_TCK: Tensor) -> Tensor:
        return state_TCK[..., 0].float()


class TurnFinder:
    """What the tokens so far end with, and where whose message began. Keeps tokens and sides at cache slots.

    `openings` are a template's (`guards.model.openings`); without any, all is one message. With `whole`, they are still
    no text of anybody, and all of a conversation is one message too. Where several end with one token, the longest
    says whose message begins. A side has the word once it has said something: some templates open an answer behind
    every question, another one or not.
    """

    def __init__(self, openings: Sequence[Opening], device: torch.device, *, whole: bool = False) -> None:
        patterns: dict[tuple[int, ...], int] = {}
        for opening in openings:
            for size in range(1, len(opening.tokens) + 1):
                patterns.setdefault(opening.tokens[:size], 0)
        for opening in () if whole else openings:
            patterns[opening.name] = _SIDES * opening.named + (_WRITTEN if opening.written else _ASKED)
        longest = max(map(len, patterns), default=1)
        table = [[_ANY] * (longest - len(each)) + list(each) for each in patterns]
        self._pattern_PL = torch.tensor(table, dtype=torch.int64, device=device).reshape(len(patterns), longest)
        self._side_P = torch.tensor(list(patterns.values()), dtype=torch.float32, device=device)
        """The side that a pattern opens and, times _SIDES, its length; 0 for none."""
        self._back_L = torch.arange(longest - 1, -1, -1, device=device)
        self._opened, self._spoken = RunningStates([_Side()], device), RunningStates([_Side()], device)
        self._tokens = torch.full((1,), _NONE, dtype=torch.int64, device=device)
        """[1 + slots]: the token at every slot. Row 0 takes what is not kept and is never read."""

    def reserve(self, slots: int) -> None:
        """Makes room for slots 0 to `slots` - 1, as `RunningStates.reserve`."""
        if 1 + slots > len(self._tokens):
            more = self._tokens.new_full((1 + slots - len(self._tokens),), _NONE)
            self._tokens = torch.cat([self._tokens, more])
        self._opened.reserve(slots)
        self._spoken.reserve(slots)

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
        side_T, alone = (ends_TP * self._side_P).amax(dim=1) % _SIDES, one_message(positions_T)
        opens_T, counted_T = side_T > 0, (positions_T > 0) & ~ends_TP.any(dim=1)
        written_T = self._opened.extend(side_T[:, None], links, alone)[:, 0] == _WRITTEN
        said_T = torch.where(written_T, _WRITTEN, _ASKED) * counted_T.float()
        spoken_T = self._spoken.extend(said_T[:, None], links, alone)[:, 0]
        return Turns(counted_T, opens_T, opens_T & (spoken_T != side_T), written_T)

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
