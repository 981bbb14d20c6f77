"""What calibration needs of a running model, whatever runs it.

`guards.loading.LoadedModel` is transformers' own; an engine brings its own, so that a guard is fitted in the numerics
it is served in.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import torch

from guards.artifact import ModelIdentity
from guards.capture import Consumer, TokenIds, Tokens
from guards.encoding import TextCodec
from guards.methods import Guard, Method
from guards.sites import Site
from guards.verdict import Reading

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
        """Neurons of a layer at a site."""
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
        site: Site,
        layers: Sequence[int],
        examples: Sequence[TokenIds],
        consume: Consumer,
        *,
        tokens: Tokens,
        batch_tokens: int | None,
        skip: tuple[int, int] = (0, 0),
        advance: Callable[[int], object] = lambda _: None,
    ) -> None:
        """One pass over the examples: `consume` sees every wanted token of every wanted layer exactly once, as an
        intervention at that site leaves it.

        `skip`: how many leading and trailing tokens of every example are no part of `Tokens.ALL`. `batch_tokens`:
        tokens of a forward pass, None for what suits. `advance` is told the tokens that are done.
        """
        ...

    def guarded(self, method: Method, guard: Guard) -> AbstractContextManager[None]:
        """Puts an intervention on the model: what `stream` then sees is a model that it acts in."""
        ...

    def reading(self, method: Method, guard: Guard) -> AbstractContextManager[Reader]:
        """Puts a finished guard on the model, as a server would, and reads it."""
        ...
