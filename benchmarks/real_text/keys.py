"""A model whose last-token key vectors are computed once, however many guards are fitted and read on them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from guards.activations import Reader
from guards.artifact import ModelIdentity
from guards.capture import Consumer, TokenIds, Tokens
from guards.encoding import TextCodec
from guards.loading import LoadedModel
from guards.methods import Guard, Method
from guards.sites import Site

CHUNK = 1024
"""Vectors handed to a consumer at a time."""


class CachedKeys:
    """A loaded model that remembers the key vectors of every layer at the last token of every example it has run.

    It is `guards.activations.Activations`; whatever else is asked of it, the model computes. Memory: layers x d_ff
    floats an example (28 KB with 8 layers of 896).
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self.loaded = loaded
        self._rows: dict[TokenIds, int] = {}
        self._key_LEF: Tensor | None = None

    @property
    def codec(self) -> TextCodec:
        """The model's."""
        return self.loaded.codec

    @property
    def identity(self) -> ModelIdentity:
        """The model's."""
        return self.loaded.identity

    @property
    def device(self) -> torch.device:
        """The model's."""
        return self.loaded.device

    @property
    def max_tokens(self) -> int | None:
        """The model's."""
        return self.loaded.max_tokens

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
        """See `guards.capture.stream`."""
        if site is not Site.KEY or tokens is not Tokens.LAST:
            self.loaded.stream(
                site,
                layers,
                examples,
                consume,
                tokens=tokens,
                batch_tokens=batch_tokens,
                skip=skip,
                advance=advance,
            )
            return
        key_LEF = self._keys([ids for ids in dict.fromkeys(examples) if ids not in self._rows], batch_tokens)
        row_E = torch.tensor([self._rows[ids] for ids in examples])
        for first in range(0, len(examples), CHUNK):
            part_T = torch.arange(first, min(first + CHUNK, len(examples)))
            for layer in sorted(set(layers)):
                consume(layer, key_LEF[layer, row_E[part_T]].to(self.device), part_T.to(self.device))
        advance(sum(len(ids) for ids in examples))

    def _keys(self, missing: list[TokenIds], batch_tokens: int | None) -> Tensor:
        """All that is remembered [L, E, F], with the missing ones."""
        known = 0 if self._key_LEF is None else self._key_LEF.shape[1]
        if missing:
            layers = self.identity.layers
            key_LEF = torch.empty(layers, len(missing), self.identity.d_ff)

            def keep(layer: int, key_TF: Tensor, example_T: Tensor) -> None:
                key_LEF[layer, example_T.cpu()] = key_TF.float().cpu()

            self.loaded.stream(Site.KEY, range(layers), missing, keep, tokens=Tokens.LAST, batch_tokens=batch_tokens)
            self._rows |= {ids: known + index for index, ids in enumerate(missing)}
            self._key_LEF = key_LEF if self._key_LEF is None else torch.cat([self._key_LEF, key_LEF], dim=1)
        assert self._key_LEF is not None
        return self._key_LEF

    @contextmanager
    def reading(self, method: Method, guard: Guard) -> Iterator[Reader]:
        """The model's own: a canary is read as a server reads it."""
        with self.loaded.reading(method, guard) as read:
            yield read
