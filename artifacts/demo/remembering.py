"""Mean activations that are computed once, for guards that are calibrated one after another on the same prompts.

Suffixes: E examples, F neurons of the site.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from guards.calibration.activations import Consumer, Pass, TokenIds, Tokens
from guards.inside.transformers.loading import LoadedModel
from guards.model.sites import Site


@dataclass(frozen=True)
class RememberingModel(LoadedModel):
    """A loaded model that keeps every mean it computed, float32 [F] by site, layer and token ids.

    Not for a model that an intervention changes in between.
    """

    kept: dict[tuple[Site, int, TokenIds], Tensor] = field(default_factory=dict)

    def stream(
        self,
        wanted: Pass,
        examples: Sequence[TokenIds],
        consume: Consumer,
        advance: Callable[[int], object] = lambda _: None,
    ) -> None:
        """See `LoadedModel.stream`; means of examples seen before come from memory, all in one batch."""
        if wanted.tokens is not Tokens.MEAN:
            super().stream(wanted, examples, consume, advance)
            return
        site, layers = wanted.site, wanted.layers
        new = [ids for ids in dict.fromkeys(examples) if any((site, layer, ids) not in self.kept for layer in layers)]

        def keep(layer: int, mean_EF: Tensor, example_E: Tensor) -> None:
            for mean_F, example in zip(mean_EF, example_E.tolist(), strict=True):
                self.kept[site, layer, new[example]] = mean_F.clone()

        if new:
            super().stream(wanted, new, keep, advance)
        example_E = torch.arange(len(examples), device=self.device)
        for layer in layers:
            consume(layer, torch.stack([self.kept[site, layer, ids] for ids in examples]), example_E)
        advance(sum(map(len, examples)) - sum(map(len, new)))


def remember(loaded: LoadedModel) -> RememberingModel:
    """The same model, remembering."""
    return RememberingModel(loaded.model, loaded.codec, loaded.sites, loaded.identity)
