"""What each method's loader refuses in an otherwise valid artifact."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from guards.artifact.store import read_artifact
from guards.calibration.entry import Entry
from guards.errors import ArtifactError
from guards.methods.registry import CUBE, NEURON_ADJUST, SELECTIVE_PRUNING, load_guard
from guards.model.shard import WHOLE
from guards.model.sites import Place, Site
from tests.guards.samples import SAMPLES, cube, cubes, write_raw
from tests.models import D_FF, D_MODEL, LAYERS

Parameters = dict[str, Any]
Tensors = dict[str, Tensor]


def dumped(entry: Entry) -> tuple[Parameters, Tensors]:
    """Parameters and tensors of a valid guard, free to be edited."""
    guard = cubes(cube(0, frame="chat"), cube(2)) if entry is CUBE else SAMPLES[entry]()
    parameters, tensors = entry.dump(guard)
    return parameters, dict(tensors)


def edit(target: dict[str, Any], *path: Any) -> Callable[[Any], None]:
    """Sets a value deep inside nested containers."""
    *parents, last = path
    for key in parents:
        target = target[key]
    return lambda value: target.__setitem__(last, value)


@pytest.mark.parametrize(
    ("path", "value", "complaint"),
    [
        (("cubes",), [], "parameters.cubes: Tuple should have at least 1"),
        (("cubes",), None, "parameters.cubes"),
        (("regime",), "some-tokens", "parameters.regime"),
        (("colour",), 1, "parameters.colour: Extra inputs"),
        (("cubes", 0, "layer"), LAYERS, f"cube 0: got layer {LAYERS}, wanted below {LAYERS}"),
        (("cubes", 0, "layer"), -1, "cubes.0.layer"),
        (("cubes", 0, "layer"), True, "cubes.0.layer"),
        (("cubes", 1, "tau"), 0.0, "cubes.1.tau"),
        (("cubes", 1, "tau"), -1.0, "cubes.1.tau"),
        (("cubes", 1, "tau"), "3", "cubes.1.tau"),
        (("cubes", 1, "k"), None, "cubes.1.k"),
        (("cubes", 1, "colour"), 1, "cubes.1.colour"),
    ],
)
def test_a_broken_ksd_parameter(tmp_path: Path, path: tuple[Any, ...], value: Any, complaint: str) -> None:
    parameters, tensors = dumped(CUBE)
    edit(parameters, *path)(value)
    artifact = read_artifact(write_raw(tmp_path / "a", "ksd", parameters, tensors))
    with pytest.raises(ArtifactError, match=complaint):
        load_guard(artifact)


@pytest.mark.parametrize(
    ("path", "value", "complaint"),
    [
        (("layers",), [], "parameters.layers: Tuple should have at least 1"),
        (("fraction",), 0.0, "parameters.fraction"),
        (("fraction",), 1.5, "parameters.fraction"),
        (("draw",), "always", "parameters.draw"),
        (("seed",), 2**63, "parameters.seed"),
        (("seed",), 0.5, "parameters.seed"),
        (("layers", 0, "neurons"), 0, "layers.0.neurons"),
        (("layers", 0, "neurons"), 2, r"'layer\.0\.neurons': got torch\.int64 \(3,\), wanted torch\.int64 \(2,\)"),
        (("layers", 0, "layer"), 1, r"no tensor 'layer\.1\.neurons'"),
        (("layers", 0, "layer"), LAYERS, f"got layer {LAYERS} twice or above"),
        (("layers", 0, "layer"), 2, "got layer 2 twice|wanted"),
    ],
)
def test_a_broken_neuron_adjust_parameter(tmp_path: Path, path: tuple[Any, ...], value: Any, complaint: str) -> None:
    parameters, tensors = dumped(NEURON_ADJUST)
    edit(parameters, *path)(value)
    artifact = read_artifact(write_raw(tmp_path / "a", "neuron-adjust", parameters, tensors))
    with pytest.raises(ArtifactError, match=complaint):
        load_guard(artifact)


@pytest.mark.parametrize(
    ("path", "value", "complaint"),
    [
        (("layers",), [], "parameters.layers: Tuple should have at least 1"),
        (("importance",), "size", "parameters.importance"),
        (("fraction",), -0.1, "parameters.fraction"),
        (("attention_fraction",), 1.5, "parameters.attention_fraction"),
        (("steps",), 0, "parameters.steps"),
        (("steps",), True, "parameters.steps"),
        (("d_attention",), 0, "parameters.d_attention"),
        (
            ("d_attention",),
            D_MODEL - 1,
            rf"layer\.1\.attention: wanted distinct indices below d_attention {D_MODEL - 1}",
        ),
        (
            ("layers", 0, "feed_forward"),
            2,
            r"'layer\.0\.feed_forward': got torch\.int64 \(3,\), wanted torch\.int64 \(2",
        ),
        (("layers", 0, "feed_forward"), -1, "layers.0.feed_forward"),
        (("layers", 0, "feed_forward"), 0, r"got tensor 'layer\.0\.feed_forward' that the manifest does not describe"),
        (("layers", 1, "attention"), 0, "got layer 1 without a neuron"),
        (("layers", 2, "attention"), 1, r"no tensor 'layer\.2\.attention'"),
        (("layers", 0, "layer"), LAYERS, f"got layer {LAYERS} twice or above"),
        (("layers", 0, "layer"), 1, r"wanted torch\.int64|no tensor"),
        (("layers", 1, "layer"), 0, "got layer 0 twice"),
        (("layers", 0, "colour"), 1, "layers.0.colour: Extra inputs"),
    ],
)
def test_a_broken_pruning_parameter(tmp_path: Path, path: tuple[Any, ...], value: Any, complaint: str) -> None:
    parameters, tensors = dumped(SELECTIVE_PRUNING)
    edit(parameters, *path)(value)
    artifact = read_artifact(write_raw(tmp_path / "a", "selective-pruning", parameters, tensors))
    with pytest.raises(ArtifactError, match=complaint):
        load_guard(artifact)


@pytest.mark.parametrize("seed", [-(2**63), 2**63 - 1])
def test_the_whole_range_of_seeds_is_usable(tmp_path: Path, seed: int) -> None:
    parameters, tensors = dumped(NEURON_ADJUST)
    parameters |= {"seed": seed, "draw": "random"}
    artifact = read_artifact(write_raw(tmp_path / "a", "neuron-adjust", parameters, tensors))
    adjusting = NEURON_ADJUST.bind(load_guard(artifact), torch.device("cpu"), WHOLE)
    adjusting.at(Place(0, Site.PRE_ACTIVATION), D_FF)(
        torch.zeros(2, D_FF), torch.arange(2), torch.ones(2, dtype=torch.bool)
    )


@pytest.mark.parametrize(
    ("entry", "name", "tensor", "complaint"),
    [
        (CUBE, "cube.1.mean", None, r"no tensor 'cube\.1\.mean'; got \['cube\.0\.mean'"),
        (CUBE, "cube.1.mean", torch.zeros(D_FF - 1), r"got torch\.float32 \(23,\), wanted torch\.float32 \(24,\)"),
        (CUBE, "cube.1.mean", torch.zeros(1), r"got torch\.float32 \(1,\)"),
        (CUBE, "cube.1.mean", torch.zeros(D_FF, 1), r"\(24, 1\)"),
        (CUBE, "cube.1.mean", torch.zeros(D_FF, dtype=torch.int64), r"got torch\.int64"),
        (CUBE, "cube.1.std", torch.zeros(D_FF), r"cube\.1\.std: got a standard deviation"),
        (CUBE, "cube.1.std", -torch.ones(D_FF), r"cube\.1\.std: got a standard deviation"),
        (CUBE, "cube.2.mean", torch.zeros(D_FF), r"got tensor 'cube\.2\.mean' that the manifest does not describe"),
        (CUBE, "payload", torch.zeros(3), "got tensor 'payload'"),
        (NEURON_ADJUST, "layer.0.neurons", torch.tensor([1, 5, D_FF]), f"below d_ff {D_FF}"),
        (NEURON_ADJUST, "layer.0.neurons", torch.tensor([1, 5, -1]), f"below d_ff {D_FF}"),
        (NEURON_ADJUST, "layer.0.neurons", torch.tensor([1, 5, 5]), "distinct indices"),
        (NEURON_ADJUST, "layer.0.neurons", torch.tensor([1.0, 5, 9]), r"got torch\.float32"),
        (NEURON_ADJUST, "layer.0.forget_std", torch.tensor([1.0, 0, 1]), r"layer\.0\..*_std: got a standard deviation"),
        (
            NEURON_ADJUST,
            "layer.0.retain_std",
            torch.tensor([1.0, 1, -1]),
            r"layer\.0\..*_std: got a standard deviation",
        ),
        (NEURON_ADJUST, "layer.2.retain_mean", None, r"no tensor 'layer\.2\.retain_mean'"),
        (NEURON_ADJUST, "layer.1.neurons", torch.tensor([1]), r"got tensor 'layer\.1\.neurons'"),
        (SELECTIVE_PRUNING, "layer.2.feed_forward", torch.tensor([0, D_FF]), f"indices below d_ff {D_FF}"),
        (SELECTIVE_PRUNING, "layer.2.feed_forward", torch.tensor([-1, 0]), f"indices below d_ff {D_FF}"),
        (SELECTIVE_PRUNING, "layer.2.feed_forward", torch.tensor([4, 4]), "distinct indices"),
        (SELECTIVE_PRUNING, "layer.2.feed_forward", torch.tensor([0.0, 1]), r"got torch\.float32"),
        (SELECTIVE_PRUNING, "layer.1.attention", torch.tensor([0, D_MODEL]), f"indices below d_attention {D_MODEL}"),
        (SELECTIVE_PRUNING, "layer.1.attention", None, r"no tensor 'layer\.1\.attention'"),
        (SELECTIVE_PRUNING, "layer.2.attention", torch.tensor([1]), r"got tensor 'layer\.2\.attention'"),
    ],
)
def test_a_broken_tensor(tmp_path: Path, entry: Entry, name: str, tensor: Tensor | None, complaint: str) -> None:
    parameters, tensors = dumped(entry)
    tensors.pop(name, None)
    if tensor is not None:
        tensors[name] = tensor
    artifact = read_artifact(write_raw(tmp_path / "a", entry.name, parameters, tensors))
    with pytest.raises(ArtifactError, match=complaint):
        load_guard(artifact)
