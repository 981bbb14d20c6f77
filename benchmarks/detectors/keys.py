"""A model that runs each prompt once, however many guards are fitted and read on it.

Suffixes: L layers, E examples, F feed-forward width (d_ff), T rows handed over.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor

from guards.artifact.manifest import ModelIdentity
from guards.calibration.activations import Consumer, Pass, Reader, TokenIds, Tokens
from guards.contract.guard import Guard
from guards.contract.method import Method
from guards.inside.transformers.loading import LoadedModel
from guards.model.encoding import TextCodec
from guards.model.sites import Place, Site

CHUNK = 1024
"""Vectors handed to a consumer at a time."""


class CachedKeys:
    """A loaded model that remembers the last token's key vector of every prompt, at every layer.

    It is `Activations`; whatever else is asked of it, the model computes. Memory: layers x d_ff floats a prompt
    (184 KB with 30 layers of 1,536). `tokens` counts those that the model has read.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self.loaded = loaded
        self.tokens = 0
        self._rows: dict[TokenIds, int] = {}
        self._key_LEF = torch.empty(loaded.identity.layers, 0, loaded.identity.d_ff)

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

    def width(self, site: Site) -> int:
        """The model's."""
        return self.loaded.width(site)

    @property
    def lacking(self) -> Mapping[Place, str]:
        """The model's."""
        return self.loaded.lacking

    def stream(
        self,
        wanted: Pass,
        examples: Sequence[TokenIds],
        consume: Consumer,
        advance: Callable[[int], object] = lambda _: None,
    ) -> None:
        """See `guards.calibration.activations.Activations.stream`."""
        if wanted.site is not Site.KEY or wanted.tokens is not Tokens.LAST:
            self.tokens += sum(map(len, examples))
            self.loaded.stream(wanted, examples, consume, advance)
            return
        missing = [ids for ids in dict.fromkeys(examples) if ids not in self._rows]
        self._run(missing, wanted.batch_tokens, advance)
        row_E = torch.tensor([self._rows[ids] for ids in examples], dtype=torch.long)
        for first in range(0, len(examples), CHUNK):
            part_T = torch.arange(first, min(first + CHUNK, len(examples)))
            for layer in sorted(set(wanted.layers)):
                consume(layer, self._key_LEF[layer, row_E[part_T]].to(self.device), part_T.to(self.device))
        advance(sum(map(len, examples)) - sum(map(len, missing)))

    def _run(self, missing: Sequence[TokenIds], batch_tokens: int | None, advance: Callable[[int], object]) -> None:
        if not missing:
            return
        known = len(self._rows)
        self._reserve(known + len(missing))

        def keep(layer: int, key_EF: Tensor, example_E: Tensor) -> None:
            self._key_LEF[layer, known + example_E.cpu()] = key_EF.float().cpu()

        every = tuple(range(self.identity.layers))
        self.loaded.stream(Pass(Site.KEY, every, Tokens.LAST, batch_tokens=batch_tokens), missing, keep, advance)
        self.tokens += sum(map(len, missing))
        self._rows |= {ids: known + index for index, ids in enumerate(missing)}

    def _reserve(self, rows: int) -> None:
        """Room for so many prompts, half as much again whenever it is short; what is added reads NaN until written."""
        layers, had, width = self._key_LEF.shape
        if rows > had:
            more = self._key_LEF.new_full((layers, max(rows - had, had // 2), width), torch.nan)
            self._key_LEF = torch.cat([self._key_LEF, more], dim=1)

    def guarded(self, method: Method, guard: Guard) -> AbstractContextManager[None]:
        """Nothing: what is remembered is of the model without an intervention. Raises NotImplementedError."""
        raise NotImplementedError(f"got {method.name}, an intervention: use the loaded model, whose keys are not kept")

    def write(
        self, prompts: Sequence[TokenIds], tokens: int, advance: Callable[[int], object] = lambda _: None
    ) -> list[TokenIds]:
        """The model's own."""
        self.tokens += sum(map(len, prompts)) + tokens * len(prompts)
        return self.loaded.write(prompts, tokens, advance)

    @contextmanager
    def reading(self, method: Method, guard: Guard) -> Iterator[Reader]:
        """The model's own: a canary is read as a server reads it."""
        with self.loaded.reading(method, guard) as read:
            yield read
