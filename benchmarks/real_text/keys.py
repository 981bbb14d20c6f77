"""A model that runs each prompt once, however many guards are fitted and read on it.

Suffixes: L layers, E examples, F feed-forward width (d_ff), T rows handed over.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor

from guards.artifact.manifest import ModelIdentity
from guards.calibration.activations import Consumer, Pass, Reader, TokenIds, Tokens, mean_by_example
from guards.contract.guard import Guard
from guards.contract.method import Method
from guards.inside.transformers.loading import LoadedModel
from guards.model.encoding import TextCodec
from guards.model.sites import Site

CHUNK = 1024
"""Vectors handed to a consumer at a time."""


class CachedKeys:
    """A loaded model that remembers two key vectors of every prompt at every layer: the last token's, and the mean.

    It is `Activations`; whatever else is asked of it, the model computes. Memory: 2 x layers x d_ff
    floats a prompt (57 KB with 8 layers of 896).
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self.loaded = loaded
        self._rows: dict[TokenIds, int] = {}
        shape = (loaded.identity.layers, 0, loaded.identity.d_ff)
        self._key_LEF = {tokens: torch.empty(shape) for tokens in (Tokens.LAST, Tokens.MEAN)}

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

    def stream(
        self,
        wanted: Pass,
        examples: Sequence[TokenIds],
        consume: Consumer,
        advance: Callable[[int], object] = lambda _: None,
    ) -> None:
        """See `guards.calibration.activations.Activations.stream`."""
        if wanted.site is not Site.KEY or wanted.tokens not in self._key_LEF:
            self.loaded.stream(wanted, examples, consume, advance)
            return
        self._run([ids for ids in dict.fromkeys(examples) if ids not in self._rows], wanted.batch_tokens)
        row_E = torch.tensor([self._rows[ids] for ids in examples], dtype=torch.long)
        key_LEF = self._key_LEF[wanted.tokens]
        for first in range(0, len(examples), CHUNK):
            part_T = torch.arange(first, min(first + CHUNK, len(examples)))
            for layer in sorted(set(wanted.layers)):
                consume(layer, key_LEF[layer, row_E[part_T]].to(self.device), part_T.to(self.device))
        advance(sum(len(ids) for ids in examples))

    def _run(self, missing: Sequence[TokenIds], batch_tokens: int | None) -> None:
        if not missing:
            return
        known = len(self._rows)
        self._reserve(known + len(missing))
        last_LEF, mean_LEF = self._key_LEF[Tokens.LAST], self._key_LEF[Tokens.MEAN]

        def keep(layer: int, key_TF: Tensor, example_T: Tensor) -> None:
            mean_EF, example_E = mean_by_example(key_TF, example_T)
            end_E = torch.unique_consecutive(example_T, return_counts=True)[1].cumsum(0) - 1
            row_E = known + example_E.cpu()
            last_LEF[layer, row_E], mean_LEF[layer, row_E] = key_TF[end_E].float().cpu(), mean_EF.cpu()

        every = tuple(range(self.identity.layers))
        self.loaded.stream(Pass(Site.KEY, every, Tokens.ALL, batch_tokens=batch_tokens), missing, keep)
        self._rows |= {ids: known + index for index, ids in enumerate(missing)}

    def _reserve(self, rows: int) -> None:
        """Room for so many prompts, doubled whenever it is short; what is added reads NaN until it is written."""
        for tokens, key_LEF in self._key_LEF.items():
            if (short := rows - key_LEF.shape[1]) > 0:
                more = key_LEF.new_full((len(key_LEF), max(short, key_LEF.shape[1]), key_LEF.shape[2]), torch.nan)
                self._key_LEF[tokens] = torch.cat([key_LEF, more], dim=1)

    def guarded(self, method: Method, guard: Guard) -> AbstractContextManager[None]:
        """Nothing: what is remembered is of the model without an intervention. Raises NotImplementedError."""
        raise NotImplementedError(f"got {method.name}, an intervention: use the loaded model, whose keys are not kept")

    def write(
        self, prompts: Sequence[TokenIds], tokens: int, advance: Callable[[int], object] = lambda _: None
    ) -> list[TokenIds]:
        """The model's own."""
        return self.loaded.write(prompts, tokens, advance)

    @contextmanager
    def reading(self, method: Method, guard: Guard) -> Iterator[Reader]:
        """The model's own: a canary is read as a server reads it."""
        with self.loaded.reading(method, guard) as read:
            yield read
