"""Scores and predictions, on a tiny model."""

import math

import pytest
import torch

from benchmarks.real_text.heldout import Document, Predicted, predict
from benchmarks.real_text.keys import CachedKeys
from benchmarks.real_text.ratios import ratios
from benchmarks.real_text.skills import FRAME
from benchmarks.real_text.variants import VARIANTS, cube, paper, pooled
from guards.calibration.activations import Activations, Pass, TokenIds, Tokens
from guards.calibration.sources import Source
from guards.core.verdict import Reading, Scope
from guards.errors import CalibrationError
from guards.methods.cube.guard import Cube, CubeGuard, Regime
from guards.methods.pooled.guard import PooledGuard
from guards.methods.registry import CUBE, NEURON_ADJUST, POOLED
from guards.model.sites import Site
from tests.guards.samples import neuron_adjust
from tests.guards.tiny import sums, tiny_loaded, words


def keys(model: Activations, examples: list[TokenIds], tokens: Tokens = Tokens.LAST) -> dict[int, torch.Tensor]:
    """What a consumer is handed, by layer, in the examples' order."""
    found = {layer: torch.full((len(examples), model.identity.d_ff), torch.nan) for layer in (0, 2)}

    def consume(layer: int, key_TF: torch.Tensor, example_T: torch.Tensor) -> None:
        found[layer][example_T] = key_TF

    model.stream(Pass(Site.KEY, (0, 2), tokens), examples, consume)
    return found


def test_remembered_keys_are_the_models_and_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = tiny_loaded()
    model = CachedKeys(loaded)
    examples = [model.codec.encode_text(text) for text in sums(5)]
    fresh = {tokens: keys(tiny_loaded(), examples[3:], tokens) for tokens in (Tokens.LAST, Tokens.MEAN)}
    keys(model, examples[:2])
    keys(model, [*examples, examples[1]])
    monkeypatch.setattr(type(loaded), "stream", None)
    for tokens, by_layer in fresh.items():
        remembered = keys(model, examples[3:], tokens)
        for layer, fresh_EF in by_layer.items():
            assert torch.allclose(remembered[layer], fresh_EF, atol=1e-6)  # other batches sum in another order
    with pytest.raises(TypeError):
        keys(model, examples, Tokens.ALL)


def made_cube(width: int, tau: float, layer: int = 0) -> Cube:
    return Cube(layer, "bare", torch.zeros(width), torch.ones(width), k=tau, tau=tau)


def guard(*cubes: Cube) -> CubeGuard:
    return CubeGuard(cubes, Scope.BOTH, Regime.LAST_TOKEN)


def test_a_ratio_of_one_is_where_a_server_abstains() -> None:
    model = CachedKeys(tiny_loaded())
    examples = [model.codec.encode_text(text) for text in (*sums(20), *words(20))]
    width = model.identity.d_ff
    reach_E = keys(model, examples)[2].abs().amax(dim=1)
    tau = float(reach_E.median())
    one, two = guard(made_cube(width, tau, 2)), guard(made_cube(width, tau, 2), made_cube(width, 1e-9))
    beside = guard(made_cube(width, tau / 2, 2), made_cube(width, tau, 2), made_cube(width, tau / 4, 2))
    found = ratios(model, {"one": one, "two": two, "beside": beside}, examples)
    assert torch.allclose(found["one"], reach_E / tau)
    assert torch.allclose(found["two"], found["one"])  # the second cube holds nothing
    assert torch.allclose(found["beside"], found["one"])  # of three parts at one place, the widest
    with model.reading(CUBE, one) as read:
        inside = [read(ids)[0] is Reading.INSIDE for ids in examples]
    assert inside == (found["one"] <= 1).tolist()
    assert 0 < sum(inside) < len(inside)


def test_a_score_that_is_not_finite_is_no_ratio() -> None:
    model = CachedKeys(tiny_loaded())
    broken = guard(Cube(0, "bare", torch.full((model.identity.d_ff,), torch.nan), torch.ones(24), k=1.0, tau=1.0))
    with pytest.raises(CalibrationError, match="not finite"):
        ratios(model, {"broken": broken}, [model.codec.encode_text("1+1=")])


def test_a_pooled_ratio_is_what_a_server_reads() -> None:
    model = CachedKeys(tiny_loaded())
    forget, retain = Source("sums", sums(120)), [Source("words", words(120))]
    pooled_guard = pooled(model, [forget], retain, ("bare",)).guard
    examples = [model.codec.encode_text(text) for text in (*sums(40, 9), *words(40, 9))]
    found = ratios(model, {"cube": guard(made_cube(model.identity.d_ff, 1.0)), "pooled": pooled_guard}, examples)
    assert isinstance(pooled_guard, PooledGuard)
    with model.reading(POOLED, pooled_guard) as read:
        read_E = torch.tensor([read(ids)[1][0] for ids in examples])
    assert torch.allclose(found["pooled"] * pooled_guard.tau, read_E, atol=1e-3)  # sums per token, not of the mean
    assert float(found["pooled"].min()) < 0 < float(found["pooled"].max())


def test_variants_are_the_papers_cube_held_out_cubes_and_the_default() -> None:
    model = CachedKeys(tiny_loaded())
    forget, retain = [Source("sums", sums(120))], [Source("words", words(120))]
    by_paper = paper(model, forget, retain, (FRAME,))
    assert isinstance(by_paper.guard, CubeGuard)
    (one,) = by_paper.guard.cubes
    assert (one.layer, one.tau, one.frame) == (model.identity.layers - 1, one.k, FRAME)
    held_out = cube(model, forget, retain, (FRAME,)).guard
    assert isinstance(held_out, CubeGuard)
    assert held_out.cubes[0].tau != held_out.cubes[0].k
    assert [variant.frames for variant in VARIANTS.values()] == [(FRAME,), (FRAME,), ()]


def test_an_intervention_is_not_put_on_remembered_keys() -> None:
    with pytest.raises(NotImplementedError, match="intervention"):
        CachedKeys(tiny_loaded()).guarded(NEURON_ADJUST, neuron_adjust())


def test_predictions_are_the_models_own() -> None:
    loaded = tiny_loaded()
    ids = loaded.codec.encode_text("12+34=46")
    short = loaded.codec.encode_text("ab")
    found = predict(loaded, [Document(ids[:6], ids, 6, 2), Document(short, short, 1, 2)])
    with torch.no_grad():
        log_TV = loaded.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(dim=-1)
    wanted = -sum(float(log_TV[at - 1, ids[at]]) for at in range(6, len(ids)))
    assert found.token_D.tolist() == [len(ids) - 6, len(short) - 1]
    assert float(found.nll_D[0]) == pytest.approx(wanted, rel=1e-5)
    right = sum(int(log_TV[at - 1].argmax()) == ids[at] for at in range(6, len(ids)))
    assert int(found.right_D[0]) == right


def test_a_refused_document_fails_whole() -> None:
    before = Predicted(*(torch.tensor(x, dtype=torch.float64) for x in ([10.0, 30.0], [10.0, 60.0], [8.0, 12.0])))
    assert before.accuracy == 0.5
    assert before.perplexity == pytest.approx(math.exp(70 / 40))
    after = before.behind(torch.tensor([True, False]), 64)
    assert after.accuracy == 12 / 40
    assert after.perplexity == pytest.approx(math.exp((10 * math.log(64) + 60) / 40))
    untouched = before.behind(torch.tensor([False, False]), 64)
    assert (untouched.accuracy, untouched.perplexity) == (before.accuracy, before.perplexity)
