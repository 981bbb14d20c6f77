"""A model that runs each prompt once for all calibrations.

Nine skills are fitted on the same prompts, which are forgotten by one and retained by the others: without this most of
the time goes into running them again. Last tokens only, since whole prompts would not fit into memory.

Suffixes: E examples, F feed-forward width (d_ff).
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from guards.activations import Activations, Reader
from guards.artifact import ModelIdentity
from guards.capture import Consumer, TokenIds, Tokens
from guards.encoding import TextCodec
from guards.methods import Guard, Method
from guards.sites import Site

CHUNK = 1024
"""Remembered examples handed over at a time."""


@dataclass(frozen=True)
class RememberingModel:
    """`inner`, whose key vectors of last tokens are kept by prompt and layer."""

    inner: Activations
    _keys: dict[tuple[int, TokenIds], Tensor] = field(default_factory=dict)

    @property
    def codec(self) -> TextCodec:
        """The inner model's."""
        return self.inner.codec

    @property
    def identity(self) -> ModelIdentity:
        """The inner model's."""
        return self.inner.identity

    @property
    def device(self) -> torch.device:
        """The inner model's."""
        return self.inner.device

    @property
    def max_tokens(self) -> int | None:
        """The inner model's."""
        return self.inner.max_tokens

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
        """See `Activations.stream`; `advance` is told only of tokens that had to be run."""
        if site is not Site.KEY or tokens is not Tokens.LAST:
            self.inner.stream(
                site, layers, examples, consume, tokens=tokens, batch_tokens=batch_tokens, skip=skip, advance=advance
            )
            return
        wanted = sorted(set(layers))
        missing = [ids for ids in dict.fromkeys(examples) if any((layer, ids) not in self._keys for layer in wanted)]

        def keep(layer: int, key_EF: Tensor, example_E: Tensor) -> None:
            for row_F, example in zip(key_EF, example_E.tolist(), strict=True):
                self._keys[layer, missing[example]] = row_F

        if missing:
            self.inner.stream(
                site, wanted, missing, keep, tokens=tokens, batch_tokens=batch_tokens, skip=skip, advance=advance
            )
        for first in range(0, len(examples), CHUNK):
            chunk = examples[first : first + CHUNK]
            example_E = torch.arange(first, first + len(chunk), device=self.device)
            for layer in wanted:
                consume(layer, torch.stack([self._keys[layer, ids] for ids in chunk]), example_E)

    def reading(self, method: Method, guard: Guard) -> AbstractContextManager[Reader]:
        """The inner model's."""
        return self.inner.reading(method, guard)
