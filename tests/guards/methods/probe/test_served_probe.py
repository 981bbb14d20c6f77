"""Probes read in a pass what plain passes read: at each site, in batches, over ranks, on both backends' installers."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from guards.artifact.store import read_artifact
from guards.errors import ArtifactError
from guards.inside.transformers.sites import find_sites
from guards.inside.vllm.sites import find_local_sites
from guards.methods.registry import PROBE, load_guard
from guards.methods.spans.guard import Judgement, SpanBank, SpanGuard
from guards.model.shard import WHOLE, Shard
from guards.model.sites import SITES, End, Place, Site
from tests.guards.attached import attach, read
from tests.guards.inside.vllm.imitation import D_ATTENTION, LlamaForCausalLM, on_ranks, sliced
from tests.guards.inside.vllm.test_board import IDS, board_on, parts, run
from tests.guards.samples import LAST_ALONE, MEAN_ALONE, spans, write_raw
from tests.models import D_MODEL, LAYERS, tiny_model

SERVED = (Site.RESIDUAL, Site.KEY, Site.ATTENTION)
each_site = pytest.mark.parametrize("site", SERVED)


def last(site: Site, d_attention: int = D_MODEL) -> SpanGuard:
    """A probe of the last token at two layers."""
    return spans(0, LAYERS - 1, judgements=LAST_ALONE, site=site, d_attention=d_attention)


def seen(model: Any, taps: Any, site: Site, layer: int, ask: Any) -> Tensor:
    """A site's vectors by a hook of the test's own, float32 [T, F]."""
    kept: list[Tensor] = []
    module = taps.tap(Place(layer, site)).module

    def keep(x: Any) -> None:
        if isinstance(x, tuple):
            x = x[0] + x[1] if site is Site.RESIDUAL and len(x) > 1 else x[0]
        kept.append(x.reshape(-1, x.shape[-1]).float().clone())

    if SITES[site].end is End.INPUT:
        handle = module.register_forward_pre_hook(lambda _, args: keep(args[0]))
    else:
        handle = module.register_forward_hook(lambda _, __, output: keep(output))
    ask()
    handle.remove()
    return kept[0]


def values(model: Any, taps: Any, guard: SpanGuard, ask: Any) -> Tensor:
    """Every token's value, float32 [T], by definition."""
    shares = [seen(model, taps, guard.site, t.layer, ask) @ t.weight_F - t.offset for t in guard.terms]
    return torch.stack(shares).sum(dim=0)


@each_site
@torch.no_grad()
def test_a_batch_reads_what_single_prompts_read_alone(site: Site) -> None:
    model, ids = tiny_model("llama"), torch.tensor([[5, 9, 30, 2], [17, 8, 4, 21]])
    guard = last(site)
    alone = [values(model, find_sites(model), guard, partial(model, input_ids=row[None])) for row in ids]
    with attach(model, probe=guard) as attachment:
        got = read(model, attachment, ids).scores["probe"][:, 0]
    torch.testing.assert_close(got, torch.cat(alone), rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize(("judgements", "tokens"), [(LAST_ALONE, 1), (MEAN_ALONE, 4)])
def test_a_probe_of_the_last_token_looks_at_sampled_rows_only(
    judgements: tuple[Judgement, ...], tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Positive control: one along the text looks at all."""
    model, looked = tiny_model("llama"), []
    forward = SpanBank.forward

    def counted(bank: SpanBank, x_TF: Tensor, positions: Tensor | None = None) -> Tensor:
        looked.append(len(x_TF))
        return forward(bank, x_TF, positions)

    monkeypatch.setattr(SpanBank, "forward", counted)
    with attach(model, probe=spans(0, 2, judgements=judgements, site=Site.RESIDUAL)):
        model(input_ids=torch.tensor([[5, 9, 30, 2]]), logits_to_keep=torch.tensor([3]))
    assert looked == [tokens, tokens]


@each_site
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_board_reads_what_a_plain_pass_reads(site: Site, dtype: torch.dtype) -> None:
    from transformers import LlamaConfig

    model, guard = LlamaForCausalLM().to(dtype), last(site, D_ATTENTION)
    taps = find_local_sites(model, LlamaConfig(num_hidden_layers=LAYERS))
    wanted = values(model, taps, guard, partial(run, model))
    board = board_on(model, WHOLE, dtype, probe=guard)
    _, rows_RX = board.split(run(model))
    torch.testing.assert_close(parts(board, rows_RX, "probe")[:, 0], wanted, rtol=1e-4, atol=1e-4)
    assert len(set(wanted.tolist())) == len(IDS)


@each_site
def test_two_ranks_read_what_one_reads(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, guard = LlamaForCausalLM(), last(site, D_ATTENTION)
    one = board_on(whole, probe=guard)
    wanted = parts(one, one.split(run(whole))[1], "probe")

    def of_rank(rank: int) -> Tensor:
        part = sliced(whole, rank, 2)
        board = board_on(part, Shard(rank, 2), probe=guard)
        return parts(board, board.split(run(part))[1], "probe")

    for got in on_ranks(monkeypatch, [partial(of_rank, rank) for rank in range(2)]):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


@each_site
def test_a_probe_survives_the_disk(site: Site, tmp_path: Path) -> None:
    guard = last(site)
    parameters, tensors = PROBE.dump(guard)
    loaded = load_guard(read_artifact(write_raw(tmp_path / "a", "probe", parameters, dict(tensors))))
    assert isinstance(loaded, SpanGuard)
    assert (loaded.site, loaded.judgements) == (site, LAST_ALONE)
    for term, kept in zip(loaded.terms, guard.terms, strict=True):
        assert (term.layer, term.offset) == (kept.layer, kept.offset)
        assert torch.equal(term.weight_F, kept.weight_F)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"d_attention": 8}, "got site 'residual' and d_attention 8"),
        ({"site": "attention"}, "got site 'attention' and d_attention None"),
        ({"site": "attention", "d_attention": 9}, r"wanted torch\.float32 \(9,\)"),
        ({"site": "pre_activation"}, "parameters.site"),
        ({"judgements": [{"over_tokens": "last", "tau": 0.5, "written": False}]}, "judgements.0.last.written"),
        ({"judgements": [{"over_tokens": "last", "tau": 1.5}]}, "judgements.0.last.tau"),
        ({"judgements": [{"over_tokens": "last", "tau": 0.5}] * 2}, "last token, last token, wanted each once"),
        ({"variant": "spans"}, "got method 'probe', variant 'spans'"),
    ],
)
def test_what_a_loader_refuses(change: dict[str, Any], complaint: str, tmp_path: Path) -> None:
    parameters, tensors = PROBE.dump(last(Site.RESIDUAL))
    with pytest.raises(ArtifactError, match=complaint):
        load_guard(read_artifact(write_raw(tmp_path / "a", "probe", {**parameters, **change}, dict(tensors))))
