"""What LUNAR's training minimises: on the residual stream after the block whose down projection is trained.

Suffixes: T tokens, D residual width. h is with the delta, h0 without.

The paper trains the projection by itself, towards its own outputs, moved by c r on forget tokens. A block adds what its
projection gives to the residual stream, so h - h0 is what the delta gives: the same losses.
"""

from dataclasses import dataclass

from torch import Tensor

from guards.methods.rmu.objectives import States, squared


@dataclass(frozen=True)
class Redirection:
    """``mean (h - h0 - c r)^2`` on forget tokens, ``mean (h - h0)^2`` on retain tokens; `push_D` is c r."""

    layer: int
    push_D: Tensor
    last_only: bool = False

    @property
    def layers(self) -> tuple[int, ...]:
        return (self.layer,)

    def forget(self, after: States, before: States) -> Tensor:
        return squared(after[self.layer], before[self.layer].float() + self.push_D)

    def retain(self, after: States, before: States) -> Tensor:
        return squared(after[self.layer], before[self.layer])
