"""What LUNAR's training minimises: on the residual stream after the block whose down projection is trained.

Suffixes: T tokens, D residual width. h is with the delta, h0 without.

The paper trains the projection by itself, towards its own outputs, moved by c r on forget tokens. A block adds what its
projection gives to the residual stream, so h - h0 is what the delta gives: the same losses. Both are sums over tokens
there and in the solve, where means are taken here, so the retain loss has a weight, and a batch that of its tokens.
"""

from dataclasses import dataclass

from torch import Tensor

from guards.methods.rmu.objectives import States, squared
from guards.methods.rmu.training import Sides, looked_at


@dataclass(frozen=True)
class Redirection:
    """``mean (h - h0 - c r)^2`` on forget tokens, ``weight mean (h - h0)^2`` on retain tokens; `push_D` is c r.

    With `weight` retain tokens over forget tokens all count alike, in whatever batches (`by_token`): with alpha 1 the
    optimum is the closed form's of no ridge.
    """

    layer: int
    push_D: Tensor
    weight: float
    by_token: bool = True

    @property
    def layers(self) -> tuple[int, ...]:
        return (self.layer,)

    def forget(self, after: States, before: States) -> Tensor:
        return squared(after[self.layer], before[self.layer].float() + self.push_D)

    def retain(self, after: States, before: States) -> Tensor:
        return self.weight * squared(after[self.layer], before[self.layer])


def token_ratio(sides: Sides) -> float:
    """Retain tokens that are looked at, over forget tokens that are."""
    return looked_at(sides.retain) / looked_at(sides.forget)
