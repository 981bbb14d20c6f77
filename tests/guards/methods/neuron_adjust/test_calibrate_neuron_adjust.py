"""Calibrating Neuron Adjust on a tiny model."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from guards.artifact.store import read_artifact
from guards.errors import CalibrationError
from guards.inside.transformers.loading import LoadedModel
from guards.methods.neuron_adjust.calibrate import NeuronAdjustCalibration
from guards.methods.neuron_adjust.calibrate import calibrate as calibrate_neuron_adjust
from guards.methods.neuron_adjust.guard import NeuronAdjustGuard
from guards.methods.neuron_adjust.options import NeuronAdjustOptions
from guards.methods.registry import NEURON_ADJUST, load_guard, method_of
from guards.model.sites import Place, Site
from tests.guards.tiny import sources, tiny_loaded
from tests.guards.verified import disagreements

FRAMES = ("chat", "bare")


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return tiny_loaded()


@pytest.fixture(scope="module")
def calibration(loaded: LoadedModel) -> NeuronAdjustCalibration:
    return calibrate_neuron_adjust(loaded, *sources(60), NeuronAdjustOptions(frames=FRAMES, fraction=0.25))


def _pre_activations(loaded: LoadedModel, layer: int, texts: tuple[str, ...]) -> Tensor:
    """All tokens' pre-activations [T, F] in both frames, one prompt at a time, by a hook of the test's own."""
    kept: list[Tensor] = []
    module = loaded.sites.tap(Place(layer, Site.PRE_ACTIVATION)).module
    handle = module.register_forward_hook(lambda _, __, output: kept.append(output[0]))
    with torch.no_grad():
        for frame in FRAMES:
            for text in texts:
                loaded.model(input_ids=torch.tensor([loaded.codec.encode_frame(frame, text)]))
    handle.remove()
    return torch.cat(kept).double()


def test_streamed_statistics_equal_one_shot(loaded: LoadedModel, calibration: NeuronAdjustCalibration) -> None:
    guard = calibration.guard
    assert isinstance(guard, NeuronAdjustGuard)
    (forget,), (retain,) = sources(60)
    assert guard.layers
    for layer in guard.layers:
        statistics = guard.layers_statistics[layer]
        for source, mean_S, std_S in (
            (forget, statistics.forget_mean_S, statistics.forget_std_S),
            (retain, statistics.retain_mean_S, statistics.retain_std_S),
        ):
            x_TF = _pre_activations(loaded, layer, source.texts)
            # float32 activations from differently shaped matrix products, moments in float64.
            mean, std = x_TF.mean(dim=0).float(), x_TF.std(dim=0).float()
            torch.testing.assert_close(mean_S, mean[statistics.neurons_S], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(std_S, std[statistics.neurons_S], rtol=1e-4, atol=1e-5)


def test_selects_the_fraction_over_all_layers(loaded: LoadedModel, calibration: NeuronAdjustCalibration) -> None:
    neurons = loaded.sites.layers * loaded.sites.d_ff
    assert sum(calibration.neurons_by_layer) == neurons // 4
    assert len(calibration.neurons_by_layer) == loaded.sites.layers
    assert calibration.tokens == {
        role: sum(record.tokens for record in calibration.record.sources if record.role == role)
        for role in ("forget", "retain")
    }
    assert calibration.record.recall is None
    assert calibration.record.false_abstention is None


def test_canaries_agree_when_read_back_and_attached(calibration: NeuronAdjustCalibration, tmp_path: Path) -> None:
    calibration.save(tmp_path / "guard", "sums")
    artifact = read_artifact(tmp_path / "guard")
    canaries = artifact.manifest.canaries
    assert 2 <= len(canaries) <= 16
    assert all(canary.fires and canary.scores[0] > NEURON_ADJUST.drift.slack == 2 for canary in canaries)
    assert method_of(artifact) is calibration.method is NEURON_ADJUST
    guard = load_guard(artifact)
    assert disagreements(tiny_loaded(), NEURON_ADJUST, guard, canaries) == []
    assert disagreements(tiny_loaded(seed=5), NEURON_ADJUST, guard, canaries) != [], "positive control: other weights"


def test_the_same_input_gives_the_same_bytes_whatever_the_batch(loaded: LoadedModel, tmp_path: Path) -> None:
    for name in ("a", "b"):
        options = NeuronAdjustOptions(fraction=0.25, draw="certain")
        calibrate_neuron_adjust(loaded, *sources(40), options).save(tmp_path / name, "sums")
    for file in ("manifest.json", "tensors.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@pytest.mark.parametrize(
    ("fraction", "message"),
    [(0.0, "got `fraction` 0.0"), (1.5, "got `fraction` 1.5"), (1e-6, "selects 0 of 72 neurons")],
)
def test_refuses_a_fraction(loaded: LoadedModel, fraction: float, message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        calibrate_neuron_adjust(loaded, *sources(8), NeuronAdjustOptions(fraction=fraction))


def test_a_fraction_of_no_neuron_is_refused_before_anything_is_run(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(LoadedModel, "stream")
    with pytest.raises(CalibrationError, match="selects 0 of 72 neurons"):
        calibrate_neuron_adjust(loaded, *sources(8), NeuronAdjustOptions(fraction=1e-6))


def test_refuses_a_guard_that_no_prompt_could_verify(loaded: LoadedModel) -> None:
    with pytest.raises(CalibrationError, match="no server could verify it at start"):
        calibrate_neuron_adjust(loaded, *sources(40), NeuronAdjustOptions(fraction=2 / 72))
