"""Calibrating Selective Pruning on a tiny model."""

from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor

from guards.artifact.store import read_artifact
from guards.errors import CalibrationError
from guards.inside.transformers.loading import LoadedModel
from guards.methods.registry import SELECTIVE_PRUNING, load_guard, method_of
from guards.methods.selective_pruning.calibrate import PruningCalibration
from guards.methods.selective_pruning.calibrate import calibrate as calibrate_pruning
from guards.methods.selective_pruning.guard import EPSILON, Importance, PruningGuard
from guards.methods.selective_pruning.options import PruningOptions
from guards.model.sites import Site
from tests.guards.tiny import sources, tiny_loaded
from tests.guards.verified import disagreements
from tests.models import D_FF, D_MODEL, LAYERS

FRAMES = ("chat", "bare")
OPTIONS = PruningOptions(frames=FRAMES, fraction=0.125, attention_fraction=0.0625, steps=2)
SITES = (Site.KEY, Site.ATTENTION)


def guard_of(calibration: PruningCalibration) -> PruningGuard:
    assert isinstance(calibration.guard, PruningGuard)
    return calibration.guard


def plain(guard: PruningGuard, site: Site) -> dict[int, list[int]]:
    return {layer: neurons.tolist() for layer, neurons in guard.at(site).items()}


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return tiny_loaded()


@pytest.fixture(scope="module")
def calibration(loaded: LoadedModel) -> PruningCalibration:
    return calibrate_pruning(loaded, *sources(60), OPTIONS)


@pytest.fixture(scope="module")
def first(loaded: LoadedModel) -> PruningGuard:
    """What one step takes."""
    return guard_of(calibrate_pruning(loaded, *sources(60), replace(OPTIONS, steps=1)))


def _outputs(loaded: LoadedModel, texts: tuple[str, ...], mask: PruningGuard | None) -> dict[Site, list[Tensor]]:
    """Every layer's outputs [T, F] in both frames, one prompt at a time, by hooks of the test's own; with `mask`'s
    columns taken out of the weights."""
    model = tiny_loaded().model
    layers = model.model.layers
    modules = {
        Site.KEY: [layer.mlp.down_proj for layer in layers],
        Site.ATTENTION: [layer.self_attn.o_proj for layer in layers],
    }
    for layer, at in mask.places if mask else ():
        modules[at][layer].weight[:, mask.at(at)[layer]] = 0  # type: ignore[union-attr]
    kept: dict[Site, list[list[Tensor]]] = {site: [[] for _ in layers] for site in SITES}
    for site, layer in product(SITES, range(len(layers))):
        modules[site][layer].register_forward_pre_hook(lambda _, args, into=kept[site][layer]: into.append(args[0][0]))
    with torch.no_grad():
        for frame in FRAMES:
            for text in texts:
                model(input_ids=torch.tensor([loaded.codec.encode_frame(frame, text)]))
    return {site: [torch.cat(outputs).double() for outputs in kept[site]] for site in SITES}


Sides = list[dict[Site, list[Tensor]]]
"""Outputs on the forget and on the retain side."""


def _sides(loaded: LoadedModel, mask: PruningGuard | None) -> Sides:
    return [_outputs(loaded, side.texts, mask) for (side,) in sources(60)]


@pytest.fixture(scope="module")
def whole(loaded: LoadedModel) -> Sides:
    """Of the model as it is."""
    return _sides(loaded, None)


@pytest.fixture(scope="module")
def pruned(loaded: LoadedModel, first: PruningGuard) -> Sides:
    """Of the model without the first step's neurons."""
    return _sides(loaded, first)


def by_hand(sides: Sides, site: Site, mask: PruningGuard | None, count: int) -> dict[int, list[int]]:
    """The neurons of the largest ratio of mean sizes, leaving out those of `mask`."""
    pairs = zip(*(outputs[site] for outputs in sides), strict=True)
    ratio_LF = torch.stack([f.abs().mean(dim=0) / (r.abs().mean(dim=0) + EPSILON[site]) for f, r in pairs])
    for layer, neurons in (mask.at(site) if mask else {}).items():
        ratio_LF[layer, neurons] = -1
    width = ratio_LF.shape[1]
    found: dict[int, list[int]] = {}
    for index in sorted(ratio_LF.flatten().topk(count).indices.tolist()):
        found.setdefault(index // width, []).append(index % width)
    return found


def test_the_first_step_is_the_formula(whole: Sides, first: PruningGuard) -> None:
    assert plain(first, Site.KEY) == by_hand(whole, Site.KEY, None, 9)
    assert plain(first, Site.ATTENTION) == by_hand(whole, Site.ATTENTION, None, 3)


def test_the_second_step_measures_the_model_without_the_first_ones_neurons(
    whole: Sides, pruned: Sides, first: PruningGuard, calibration: PruningCalibration
) -> None:
    unmeasured = False
    for site, count in ((Site.KEY, 9), (Site.ATTENTION, 3)):
        more = by_hand(pruned, site, first, count)
        wanted = {
            layer: sorted(plain(first, site).get(layer, []) + more.get(layer, []))
            for layer in sorted(plain(first, site).keys() | more.keys())
        }
        assert plain(guard_of(calibration), site) == wanted
        unmeasured |= by_hand(whole, site, None, 2 * count) != wanted
    assert unmeasured, "positive control: one step of twice the size takes others"


def test_fractions_are_of_all_neurons_in_every_step(calibration: PruningCalibration) -> None:
    assert sum(calibration.feed_forward_by_layer) == 2 * int(0.125 * LAYERS * D_FF)
    assert sum(calibration.attention_by_layer) == 2 * int(0.0625 * LAYERS * D_MODEL)
    assert calibration.tokens == {
        role: sum(record.tokens for record in calibration.record.sources if record.role == role)
        for role in ("forget", "retain")
    }
    assert calibration.record.recall is None
    assert calibration.record.false_abstention is None


@pytest.mark.parametrize("importance", ["freq", "rms", "std"])
def test_another_importance_takes_other_neurons(loaded: LoadedModel, importance: str) -> None:
    first, other = (
        guard_of(calibrate_pruning(loaded, *sources(40), PruningOptions(fraction=0.125, importance=kind)))  # type: ignore[arg-type]
        for kind in ("abs", importance)
    )
    assert other.importance is Importance(importance)
    assert plain(first, Site.KEY) != plain(other, Site.KEY)
    assert first.attention == other.attention == {}


def test_no_hook_stays_on_the_model(loaded: LoadedModel, calibration: PruningCalibration) -> None:
    assert guard_of(calibration).layers
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in loaded.model.modules())


def test_canaries_agree_when_read_back_and_attached(calibration: PruningCalibration, tmp_path: Path) -> None:
    calibration.save(tmp_path / "guard", "sums")
    artifact = read_artifact(tmp_path / "guard")
    canaries = artifact.manifest.canaries
    assert 2 <= len(canaries) <= 16
    assert all(canary.fires and canary.scores[0] > SELECTIVE_PRUNING.drift.slack == 2 for canary in canaries)
    assert method_of(artifact) is calibration.method is SELECTIVE_PRUNING
    guard = load_guard(artifact)
    assert isinstance(guard, PruningGuard)
    half = PruningGuard(**{**vars(guard), "feed_forward": {}})
    assert disagreements(tiny_loaded(), SELECTIVE_PRUNING, guard, canaries) == []
    assert disagreements(tiny_loaded(), SELECTIVE_PRUNING, half, canaries) != [], "positive control: less is pruned"


def test_the_same_input_gives_the_same_bytes(loaded: LoadedModel, tmp_path: Path) -> None:
    for name in ("a", "b"):
        calibrate_pruning(loaded, *sources(40), PruningOptions(fraction=0.125)).save(tmp_path / name, "sums")
    for file in ("manifest.json", "tensors.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@pytest.mark.parametrize("fractions", [{"fraction": 1e-6}, {"fraction": 0.1, "attention_fraction": 1e-6}])
def test_a_fraction_of_no_neuron_is_refused_before_anything_is_run(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch, fractions: dict[str, float]
) -> None:
    monkeypatch.delattr(LoadedModel, "stream")
    with pytest.raises(CalibrationError, match="selects 0 of"):
        calibrate_pruning(loaded, *sources(8), PruningOptions(**fractions))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fraction": -0.1}, "got `fraction` -0.1"),
        ({"fraction": 1.5}, "got `fraction` 1.5"),
        ({"fraction": 0.6, "steps": 2}, r"got `fraction` 0.6 in each of 2 step\(s\)"),
        ({"attention_fraction": 2.0}, "got `attention_fraction` 2.0"),
        ({"fraction": 0.0}, "wanted at least one above 0"),
        ({"steps": 0}, "got `steps` 0"),
        ({"fraction": 1e-6}, "selects 0 of 72 neurons"),
        ({"attention_fraction": 1e-6}, "selects 0 of 48 neurons"),
        ({"fraction": 2 / 72}, "no server could verify it at start: give more examples, or a larger `fraction`"),
    ],
)
def test_refuses(loaded: LoadedModel, options: dict[str, float], message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        calibrate_pruning(loaded, *sources(40), PruningOptions(**options))  # type: ignore[arg-type]
