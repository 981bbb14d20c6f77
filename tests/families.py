"""Guards over spans for a model of any family, and what plain forward passes of whole prompts read by them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from guards.calibration.accumulated import read_texts, turns_of
from guards.contract.spans import MessageMean, Rise
from guards.core.verdict import Reading, Scope
from guards.inside.transformers.loading import LoadedModel
from guards.methods.spans.guard import DirectionFitter, Judgement, SpanGuard, Windows
from guards.model.sites import SITES, End, Place, Site
from tests.served import forget_prompt, retain_prompt

LAYERS = (1, 2)
PROMPTS = [forget_prompt(i) if i % 2 else retain_prompt(i) for i in range(8)]
TURNED = (
    "{{ bos_token }} {% for m in messages %}<eos> {{ 'w5' if m.role == 'assistant' else 'w4' }} {{ m.content }} "
    "{% endfor %}<eos> w5"
)
"""A chat template of turns."""


@torch.no_grad()
def vectors(loaded: LoadedModel, site: Site, prompt: Sequence[int]) -> dict[int, Tensor]:
    """What a site holds at every token, by layer [T, F]."""
    kept: dict[int, Tensor] = {}
    handles = []
    for layer in LAYERS:
        module = loaded.sites.tap(Place(layer, site)).module

        def keep(_: object, args: tuple[Tensor, ...], output: object = None, layer: int = layer) -> None:
            given = args if SITES[site].end is End.INPUT else output
            x = given[0] if isinstance(given, tuple) else given
            assert isinstance(x, Tensor)
            kept[layer] = x.reshape(-1, loaded.width(site)).clone()

        hook = module.register_forward_pre_hook if SITES[site].end is End.INPUT else module.register_forward_hook
        handles.append(hook(keep))
    loaded.model(torch.tensor([prompt]))
    for handle in handles:
        handle.remove()
    return kept


def span_guard(loaded: LoadedModel, site: Site) -> SpanGuard:
    """A guard that tells the two kinds of prompts apart by their last tokens."""

    def windows(prompts: Sequence[tuple[int, ...]], last: int) -> Windows:
        found = [vectors(loaded, site, prompt) for prompt in prompts]
        x_NF = {layer: torch.cat([each[layer][-last:] for each in found]) for layer in LAYERS}
        count = len(x_NF[LAYERS[0]])
        return Windows(x_NF, torch.ones(count, dtype=torch.float64), torch.arange(count))

    forget = windows([forget_prompt(i) for i in range(100, 140)], 9)
    retain = windows([retain_prompt(i) for i in range(100, 140)], 20)
    judgements = (Judgement(Rise(0.5, written=False), 0.25), Judgement(MessageMean(4, written=False), 0.35))
    return SpanGuard(DirectionFitter(forget, retain).finish(LAYERS), judgements, Scope.BOTH, site)


def expected(loaded: LoadedModel, guard: SpanGuard) -> list[tuple[Reading, float]]:
    """The reading and the score that is told of it at the last token of each of PROMPTS, by plain forward passes."""
    values = []
    for prompt in PROMPTS:
        found = vectors(loaded, guard.site, prompt)
        shares = [found[term.layer] @ term.weight_F - term.offset for term in guard.terms]
        values.append(torch.stack(shares).sum(dim=0))
    turns = [turns_of(prompt, loaded.codec.openings) for prompt in PROMPTS]
    taus = torch.tensor([each.tau for each in guard.judgements])
    wanted = []
    for read_TP in read_texts(values, turns, [each.over_tokens for each in guard.judgements]):
        inside = bool((read_TP[-1] <= taus).any())
        score = float(read_TP[-1][(read_TP[-1] / taus).argmin()])
        wanted.append((Reading.INSIDE if inside else Reading.OUTSIDE, score))
    assert {reading for reading, _ in wanted} == {Reading.INSIDE, Reading.OUTSIDE}, "it tells nothing apart"
    return wanted
