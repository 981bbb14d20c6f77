"""What calibration needs of a running model, whatever runs it.

`LoadedModel` is transformers' own; an engine brings its own, so that a guard is fitted in the numerics
it is served in.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from guards.artifact.manifest import ModelIdentity
from guards.contract.guard import Guard
from guards.contract.method import Method
from guards.core.verdict import Reading
from guards.model.encoding import TextCodec
from guards.model.sites import Place, Site

TokenIds = tuple[int, ...]


Consumer = Callable[[int, Tensor, Tensor], None]
"""Called with (layer, activations [T, F], index of each one's example [T]), on the model's device."""


class Tokens(StrEnum):
    """Which tokens of an example are handed over."""

    LAST = "last"
    ALL = "all"
    """All but the leading and trailing ones that `skip` names."""
    ALL_AND_LAST = "all and last"
    """Those, and the last one in any case."""


@dataclass(frozen=True)
class Pass:
    """What one pass over examples looks at.

    `skip`: how many leading and trailing tokens of every example are no part of `Tokens.ALL`. `batch_tokens`: tokens of
    a forward pass, padded ones too, None for what suits the device.
    """

    site: Site
    layers: tuple[int, ...]
    tokens: Tokens
    skip: tuple[int, int] = (0, 0)
    batch_tokens: int | None = None


class Span(NamedTuple):
    """Positions of one example: `first` up to and without `stop`, and `last` unless it is None or among them."""

    first: int
    stop: int
    last: int | None

    @property
    def positions(self) -> list[int]:
        """All of them, ascending."""
        return [*range(self.first, self.stop), *([] if self.last is None else [self.last])]


def wanted_span(length: int, tokens: Tokens, skip: tuple[int, int]) -> Span:
    """The positions of an example of `length` tokens that a consumer is handed."""
    last = length - 1
    if tokens is Tokens.LAST:
        return Span(last, length, None)
    first, stop = skip[0], max(skip[0], length - skip[1])
    inside = first <= last < stop
    return Span(first, stop, last if tokens is Tokens.ALL_AND_LAST and not inside else None)


Reader = Callable[[TokenIds], tuple[Reading, tuple[float, ...]]]
"""A guard's reading at the last token of one prompt, and its scores: one per part."""


class Activations(Protocol):
    """A model whose activations can be seen."""

    @property
    def codec(self) -> TextCodec: ...

    @property
    def identity(self) -> ModelIdentity:
        """What an artifact is bound to; it also has the number of layers."""
        ...

    def width(self, site: Site) -> int:
        """Neurons of a layer at a site. Raises UnsupportedModelError where no layer has it."""
        ...

    @property
    def lacking(self) -> Mapping[Place, str]:
        """Sites that layers do not have, and why."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the activations that a consumer is handed lie."""
        ...

    @property
    def max_tokens(self) -> int | None:
        """The longest example that can be run, None where nothing says."""
        ...

    def stream(
        self,
        wanted: Pass,
        examples: Sequence[TokenIds],
        consume: Consumer,
        advance: Callable[[int], object] = lambda _: None,
    ) -> None:
        """One pass over the examples: `consume` sees every wanted token of every wanted layer exactly once, as an
        intervention at that site leaves it. `advance` is told the tokens that are done.
        """
        ...

    def write(
        self, prompts: Sequence[TokenIds], tokens: int, advance: Callable[[int], object] = lambda _: None
    ) -> list[TokenIds]:
        """The model's own answers, greedily, of at most so many tokens, without the token that ends one.

        `advance` is told the tokens that are done, prompts' and answers' as if each had all of its own.
        """
        ...

    def guarded(self, method: Method, guard: Guard) -> AbstractContextManager[None]:
        """Puts an intervention on the model: what `stream` then sees is a model that it acts in."""
        ...

    def reading(self, method: Method, guard: Guard) -> AbstractContextManager[Reader]:
        """Puts a finished guard on the model, as a server would, and reads it."""
        ...
