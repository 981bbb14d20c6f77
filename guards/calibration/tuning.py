"""What training needs of a running model: the projections that write key vectors into the residual stream, movable.

What is trained is a delta beside each weight, so the weights stay as they are, and the same model without its deltas is
the frozen one: no second copy is needed.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor, nn

from guards.calibration.activations import TokenIds


class Example(NamedTuple):
    """One example of a batch; what is looked at are its tokens from `first` on."""

    ids: TokenIds
    first: int


class Opened(Protocol):
    """Examples that were run through the frozen model, up to the last layer that is wanted."""

    @property
    def before(self) -> Mapping[int, Tensor]:
        """By layer, the residual stream after the block at every token that is looked at, example after example.

        [T, D] in the model's dtype, without gradient.
        """
        ...

    def after(self) -> Mapping[int, Tensor]:
        """The same with the deltas as they are now, with gradients to them. Runs only the blocks from the first delta
        on.
        """
        ...


class Tuned(Protocol):
    """A model with a delta at the key vector's projection of some blocks."""

    @property
    def deltas(self) -> Mapping[int, nn.Parameter]:
        """By layer, float32 [d_model, d_ff], zero at first: the projection gives ``y = W k + delta k``."""
        ...

    def open(self, layers: Sequence[int], examples: Sequence[Example]) -> Opened:
        """One batch of examples, of which these layers are looked at."""
        ...


@runtime_checkable
class Trainable(Protocol):
    """A model that can be trained. Of `guards.calibration.activations.Activations` transformers' own is one; vLLM keeps
    nothing that a gradient could go back through.
    """

    def tuned(self, layers: Sequence[int]) -> AbstractContextManager[Tuned]:
        """Puts a movable delta on the key vectors' projection of some layers. Raises UnsupportedModelError where a
        layer has none.
        """
        ...
