"""Each family on the embedded engine: a guard over spans reads what plain passes of whole prompts read."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from guards.calibration.accumulated import read_texts, turns_of
from guards.contract.spans import MessageMean, Rise
from guards.core.verdict import Reading, Scope
from guards.errors import UnsupportedModelError
from guards.inside.transformers.loading import LoadedModel, load_model
from guards.methods.spans.guard import DirectionFitter, Judgement, SpanGuard, Windows
from guards.model.sites import SITES, End, Place, Site
from server.engines.embedded.engine import EmbeddedEngine
from server.engines.options import EmbeddedOptions
from tests.models import CONFIGS, EXPERTS, RECURRENT
from tests.served import forget_prompt, retain_prompt, save_tiny_model, write_guard
from tests.server.engines.embedded.tiny_engine import Answer, ask, run, watching

LAYERS = (1, 2)
SERVED = [*((kind, Site.KEY) for kind in CONFIGS if kind not in RECURRENT), *((kind, Site.RESIDUAL) for kind in EXPERTS)]
PROMPTS = [forget_prompt(i) if i % 2 else retain_prompt(i) for i in range(8)]
TURNED = (
    "{{ bos_token }} {% for m in messages %}<eos> {{ 'w5' if m.role == 'assistant' else 'w4' }} {{ m.content }} "
    "{% endfor %}<eos> w5"
)


@torch.no_grad()
def vectors(loaded: LoadedModel, site: Site, prompt: Sequence[int]) -> dict[int, Tensor]:
    """What a site holds at every token, by layer [T, F]."""
    kept: dict[int, Tensor] = {}
    handles = []
    for layer in LAYERS:
        module = loaded.sites.tap(Place(layer, site)).module

        def keep(_: object, args: tuple[Tensor, ...], output: object = None, layer: int = layer) -> None:
            given = args if SITES[site].end is End.INPUT else output
            kept[layer] = (given[0] if isinstance(given, tuple) else given)[-1:].reshape(-1, loaded.width(site)).clone()

        hook = module.register_forward_pre_hook if SITES[site].end is End.INPUT else module.register_forward_hook
        handles.append(hook(keep))
    loaded.model(torch.tensor([prompt]))
    for handle in handles:
        handle.remove()
    return kept


def guard_of(loaded: LoadedModel, site: Site) -> SpanGuard:
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


def expected(loaded: LoadedModel, guard: SpanGuard, prompts: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """What each judgement reads at the last token of each prompt, by plain forward passes."""
    values = []
    for prompt in prompts:
        found = vectors(loaded, guard.site, prompt)
        shares = [found[term.layer] @ term.weight_F - term.offset for term in guard.terms]
        values.append(torch.stack(shares).sum(dim=0))
    turns = [turns_of(prompt, loaded.codec.openings) for prompt in prompts]
    return [each[-1] for each in read_texts(values, turns, [each.over_tokens for each in guard.judgements])]


@pytest.mark.parametrize(("kind", "site"), SERVED)
def test_a_guard_reads_what_plain_passes_read(kind: str, site: Site, tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "model", kind, template=TURNED)
    loaded = load_model(model, "cpu")
    guard = guard_of(loaded, site)
    artifact = write_guard(tmp_path / "tens", loaded, guard)

    async def work(engine: EmbeddedEngine) -> list[Answer]:
        assert await engine.verify() == {"tens": None}
        return [await ask(engine, ids, f"r{i}", policy=watching(engine)) for i, ids in enumerate(PROMPTS)]

    answers = run(EmbeddedOptions(model=str(model), artifacts=(artifact,)), work)
    taus = torch.tensor([each.tau for each in guard.judgements])
    wanted = expected(loaded, guard, PROMPTS)
    inside = [Reading.INSIDE if bool((read_P <= taus).any()) else Reading.OUTSIDE for read_P in wanted]
    assert [each.finish.prompt_scores[0].reading for each in answers] == inside
    assert set(inside) == {Reading.INSIDE, Reading.OUTSIDE}, "the guard tells nothing apart, so nothing is shown"
    for answer, read_P in zip(answers, wanted, strict=True):
        score = answer.finish.prompt_scores[0].score
        assert score == pytest.approx(float(read_P[(read_P / taus).argmin()]), abs=1e-3)


@pytest.mark.parametrize("kind", sorted(RECURRENT))
def test_layers_that_keep_a_state_are_refused_by_name(kind: str, tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "model", kind)

    async def work(_: EmbeddedEngine) -> None:
        raise AssertionError("it started")

    with pytest.raises(UnsupportedModelError, match=r"layers of type (conv|linear_attention), .* --engine vllm"):
        run(EmbeddedOptions(model=str(model)), work)
