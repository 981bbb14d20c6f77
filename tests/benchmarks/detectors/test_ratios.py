"""What detectors are shown and what they say, on a tiny model."""

import pytest
import torch

from benchmarks.detectors.keys import CachedKeys
from benchmarks.detectors.plans import Fitting
from benchmarks.detectors.ratios import Detector, ratios
from benchmarks.detectors.variants import cube, paper
from guards.calibration.activations import Activations, Pass, TokenIds, Tokens
from guards.calibration.sources import Source
from guards.contract.spans import MessageMean, Rise
from guards.core.verdict import Reading, Scope
from guards.errors import CalibrationError
from guards.methods.cube.guard import Cube, CubeGuard, Regime
from guards.methods.registry import CUBE, NEURON_ADJUST, SPANS
from guards.methods.spans.guard import Judgement, LayerWeights, SpanGuard
from guards.model.sites import Site
from tests.guards.samples import neuron_adjust
from tests.guards.tiny import sums, tiny_loaded, words

FRAME = "Q: {text}\nA:"


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
    fresh = keys(tiny_loaded(), examples[3:])
    keys(model, examples[:2])
    keys(model, [*examples, examples[1]])
    assert model.tokens == sum(map(len, examples))
    monkeypatch.setattr(type(loaded), "stream", None)
    remembered = keys(model, examples[3:])
    for layer, fresh_EF in fresh.items():
        assert torch.allclose(remembered[layer], fresh_EF, atol=1e-6)  # other batches sum in another order
    with pytest.raises(TypeError):
        keys(model, examples, Tokens.ALL)


def made_cube(width: int, tau: float, layer: int = 0) -> Cube:
    return Cube(layer, "bare", torch.zeros(width), torch.ones(width), k=tau, tau=tau)


def guard(*cubes: Cube) -> Detector:
    return Detector(CUBE, CubeGuard(cubes, Scope.BOTH, Regime.LAST_TOKEN))


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
    with model.reading(*one) as read:
        inside = [read(ids)[0] is Reading.INSIDE for ids in examples]
    assert inside == (found["one"] <= 1).tolist()
    assert 0 < sum(inside) < len(inside)


def test_a_score_that_is_not_finite_is_no_ratio() -> None:
    model = CachedKeys(tiny_loaded())
    broken = guard(Cube(0, "bare", torch.full((model.identity.d_ff,), torch.nan), torch.ones(24), k=1.0, tau=1.0))
    with pytest.raises(CalibrationError, match="not finite"):
        ratios(model, {"broken": broken}, [model.codec.encode_text("1+1=")])


def test_a_ratio_of_spans_is_the_most_decisive_judgement_of_a_prompt_as_a_server_reads_it() -> None:
    model = CachedKeys(tiny_loaded())
    draw = torch.Generator().manual_seed(1)
    terms = tuple(LayerWeights(layer, torch.randn(model.identity.d_ff, generator=draw), 0.1) for layer in (0, 2))
    rise, mean, of_answers = Rise(0.5, False), MessageMean(3.0, False), Rise(0.5, True)
    judgements = (Judgement(rise, 0.11), Judgement(mean, 0.55), Judgement(of_answers, 1 - 1e-6))
    spans = Detector(SPANS, SpanGuard(terms, judgements, Scope.BOTH))
    examples = [
        *(model.codec.encode_frame("chat", text) for text in (*sums(15), *words(15))),
        *(model.codec.encode_text(text) for text in sums(5)),
        *(model.codec.encode_frame("chat", " ".join(words(4, seed))) for seed in range(5)),
    ]
    width = model.identity.d_ff
    found = ratios(model, {"spans": spans, "cube": guard(made_cube(width, 1.0, 2))}, examples)  # in one pass
    with model.reading(*spans) as read:
        said = [read(ids) for ids in examples]
    of_prompts_E2 = torch.tensor([scores[:2] for _, scores in said])
    wanted_E = (of_prompts_E2 / torch.tensor([0.11, 0.55])).amin(dim=1)
    assert torch.allclose(found["spans"], wanted_E, atol=1e-4)
    fires = [reading is Reading.INSIDE for reading, _ in said]
    assert fires == (found["spans"] <= 1).tolist()
    assert 0 < sum(fires) < len(fires)
    by_rise_E = (of_prompts_E2[:, 0] / 0.11) < (of_prompts_E2[:, 1] / 0.55)
    assert 0 < int(by_rise_E.sum()) < len(examples), "each of both decides somewhere"


def test_variants_are_the_papers_cube_and_cubes_on_held_out_texts() -> None:
    model = CachedKeys(tiny_loaded())
    of = Fitting((Source("sums", sums(120)),), (Source("words", words(120)),), (FRAME,))
    by_paper, held_out = paper(model, of).guard, cube(model, of).guard
    assert isinstance(by_paper, CubeGuard)
    assert isinstance(held_out, CubeGuard)
    (one,) = by_paper.cubes
    assert (one.layer, one.tau, one.frame) == (model.identity.layers - 1, one.k, FRAME)
    assert held_out.cubes[0].tau != held_out.cubes[0].k


def test_an_intervention_is_not_put_on_remembered_keys() -> None:
    with pytest.raises(NotImplementedError, match="intervention"):
        CachedKeys(tiny_loaded()).guarded(NEURON_ADJUST, neuron_adjust())
