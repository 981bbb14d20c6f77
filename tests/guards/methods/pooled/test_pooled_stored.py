"""What the loader refuses of a pooled guard."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from guards.artifact.store import read_artifact
from guards.contract.accumulate import MEAN
from guards.contract.guard import Part
from guards.errors import ArtifactError
from guards.methods.pooled.guard import PooledGuard
from guards.methods.registry import CUBE, POOLED, load_guard
from guards.model.shard import WHOLE
from guards.model.sites import Place, Site
from tests.guards.methods.test_stored import Parameters, Tensors, edit
from tests.guards.samples import cubes, pooled, write_raw
from tests.models import D_FF, LAYERS


def dumped() -> tuple[Parameters, Tensors]:
    """Parameters and tensors of a valid guard at layers 1 and 2, free to be edited."""
    parameters, tensors = POOLED.dump(pooled(1, 2))
    return parameters, dict(tensors)


def load(folder: Path, parameters: Parameters, tensors: Tensors) -> object:
    return load_guard(read_artifact(write_raw(folder / "a", "ksd", parameters, tensors)))


def test_a_guard_survives_the_disk(tmp_path: Path) -> None:
    parameters, tensors = dumped()
    assert parameters["variant"] == "pooled"
    guard = load(tmp_path, parameters, tensors)
    assert isinstance(guard, PooledGuard)
    again, tensors_again = POOLED.dump(guard)
    assert again == parameters
    assert tensors.keys() == tensors_again.keys()
    assert all(torch.equal(tensors[name], tensors_again[name]) for name in tensors)


@pytest.mark.parametrize(("given", "other"), [("paper", POOLED.dump(pooled())), ("pooled", CUBE.dump(cubes()))])
def test_a_variant_with_the_others_parameters_is_refused(tmp_path: Path, given: str, other: Any) -> None:
    parameters, tensors = other
    with pytest.raises(ArtifactError, match=r"parameters\."):
        load(tmp_path, {**parameters, "variant": given}, tensors)


@pytest.mark.parametrize(
    ("path", "value", "complaint"),
    [
        (("terms",), [], "parameters.terms: Tuple should have at least 1"),
        (("terms",), None, "parameters.terms"),
        (("tau",), 0.0, "parameters.tau"),
        (("tau",), -0.5, "parameters.tau"),
        (("tau",), "0.5", "parameters.tau"),
        (("tau",), None, "parameters.tau"),
        (("regime",), "last-token", "parameters.regime: Extra inputs"),
        (("terms", 1, "layer"), LAYERS, rf"got layers \[1, {LAYERS}\], wanted them ascending, .* below {LAYERS}"),
        (("terms", 1, "layer"), 1, r"got layers \[1, 1\], wanted them ascending, each once"),
        (("terms", 1, "layer"), 0, r"got layers \[1, 0\], wanted them ascending"),
        (("terms", 0, "layer"), -1, "terms.0.layer"),
        (("terms", 0, "layer"), True, "terms.0.layer"),
        (("terms", 0, "offset"), "0", "terms.0.offset"),
        (("terms", 0, "offset"), None, "terms.0.offset"),
        (("terms", 0, "colour"), 1, "terms.0.colour: Extra inputs"),
    ],
)
def test_a_broken_parameter(tmp_path: Path, path: tuple[Any, ...], value: Any, complaint: str) -> None:
    parameters, tensors = dumped()
    parameters["terms"] = list(parameters["terms"])
    edit(parameters, *path)(value)
    with pytest.raises(ArtifactError, match=complaint):
        load(tmp_path, parameters, tensors)


@pytest.mark.parametrize("key", ["tau", "terms"])
def test_a_missing_parameter(tmp_path: Path, key: str) -> None:
    parameters, tensors = dumped()
    del parameters[key]
    with pytest.raises(ArtifactError, match=f"parameters.{key}: Field required"):
        load(tmp_path, parameters, tensors)


@pytest.mark.parametrize(
    ("name", "tensor", "complaint"),
    [
        ("term.1.weight", None, r"no tensor 'term\.1\.weight'; got \['term\.0\.weight'"),
        ("term.1.weight", torch.ones(D_FF - 1), r"got torch\.float32 \(23,\), wanted torch\.float32 \(24,\)"),
        ("term.1.weight", torch.ones(1), r"got torch\.float32 \(1,\)"),
        ("term.1.weight", torch.ones(D_FF, 1), r"\(24, 1\)"),
        ("term.1.weight", torch.ones(D_FF, dtype=torch.int64), r"got torch\.int64"),
        ("term.1.weight", torch.zeros(D_FF), r"term\.1\.weight: got zeros, which score nothing"),
        ("term.2.weight", torch.ones(D_FF), r"got tensor 'term\.2\.weight' that the manifest does not describe"),
        ("cube.0.mean", torch.ones(D_FF), r"got tensor 'cube\.0\.mean'"),
    ],
)
def test_a_broken_tensor(tmp_path: Path, name: str, tensor: Tensor | None, complaint: str) -> None:
    parameters, tensors = dumped()
    tensors.pop(name, None)
    if tensor is not None:
        tensors[name] = tensor
    with pytest.raises(ArtifactError, match=complaint):
        load(tmp_path, parameters, tensors)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_weight_that_is_not_finite(tmp_path: Path, bad: float) -> None:
    parameters, tensors = dumped()
    tensors["term.0.weight"][3] = bad
    with pytest.raises(ArtifactError, match="finite"):
        load(tmp_path, parameters, tensors)


def test_a_bound_guard_is_one_part_of_several_layers() -> None:
    bound = POOLED.bind(pooled(0, 2, tau=0.25), torch.device("cpu"), WHOLE)
    assert bound.parts == (Part("", (0, 2), MEAN),)
    assert [column.place for column in bound.columns] == [Place(0, Site.KEY), Place(2, Site.KEY)]
    assert bound.taus == (0.25,)
