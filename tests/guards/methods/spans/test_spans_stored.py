"""What the loader refuses of a guard over spans."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from guards.artifact.store import read_artifact
from guards.contract.guard import OverRanks, Part
from guards.errors import ArtifactError, AttachError
from guards.methods.registry import CUBE, SPANS, load_guard
from guards.methods.spans.guard import SpanGuard
from guards.methods.spans.stored import BoundSpans
from guards.model.shard import WHOLE, Shard
from guards.model.sites import Place, Site
from tests.guards.methods.test_stored import Parameters, Tensors, edit
from tests.guards.samples import JUDGEMENTS, cubes, spans, write_raw
from tests.models import D_FF, LAYERS


def dumped() -> tuple[Parameters, Tensors]:
    """Parameters and tensors of a valid guard at layers 1 and 2, free to be edited."""
    parameters, tensors = SPANS.dump(spans(1, 2))
    return parameters, dict(tensors)


def load(folder: Path, parameters: Parameters, tensors: Tensors) -> object:
    return load_guard(read_artifact(write_raw(folder / "a", "ksd", parameters, tensors)))


def test_a_guard_survives_the_disk(tmp_path: Path) -> None:
    parameters, tensors = dumped()
    assert parameters["variant"] == "spans"
    guard = load(tmp_path, parameters, tensors)
    assert isinstance(guard, SpanGuard)
    assert guard.judgements == JUDGEMENTS
    again, tensors_again = SPANS.dump(guard)
    assert again == parameters
    assert all(torch.equal(tensors[name], tensors_again[name]) for name in {*tensors, *tensors_again})


@pytest.mark.parametrize(("given", "other"), [("paper", SPANS.dump(spans())), ("spans", CUBE.dump(cubes()))])
def test_a_variant_with_the_others_parameters_is_refused(tmp_path: Path, given: str, other: Any) -> None:
    parameters, tensors = other
    with pytest.raises(ArtifactError, match=r"parameters\."):
        load(tmp_path, {**parameters, "variant": given}, tensors)


@pytest.mark.parametrize(
    ("path", "value", "complaint"),
    [
        (("terms",), [], "parameters.terms: Tuple should have at least 1"),
        (("judgements",), [], "parameters.judgements: Tuple should have at least 1"),
        (("judgements", 0, "tau"), 0.0, "judgements.0.span.tau"),
        (("judgements", 0, "tau"), 1.0, "judgements.0.span.tau"),
        (("judgements", 1, "tau"), "0.5", "judgements.1.mean.tau"),
        (("judgements", 0, "kappa"), 1.0, "judgements.0.span.kappa"),
        (("judgements", 0, "weight"), 1.0, "judgements.0.span.weight: Extra inputs"),
        (("judgements", 1, "weight"), -1.0, "judgements.1.mean.weight"),
        (("judgements", 1, "weight"), 0.0, "judgements.1.mean.weight"),
        (("judgements", 1, "over_tokens"), "median", "parameters.judgements.1"),
        (
            ("judgements", 2, "written"),
            False,
            "prompt, span, wanted each once",
        ),
        (("judgements", 2, "written"), 1, "judgements.2.span.written"),
        (("regime",), "last-token", "parameters.regime: Extra inputs"),
        (("terms", 1, "layer"), LAYERS, rf"got layers \[1, {LAYERS}\], wanted them ascending, .* below {LAYERS}"),
        (("terms", 1, "layer"), 1, r"got layers \[1, 1\], wanted them ascending, each once"),
        (("terms", 0, "layer"), -1, "terms.0.layer"),
        (("terms", 0, "offset"), None, "terms.0.offset"),
    ],
)
def test_a_broken_parameter(tmp_path: Path, path: tuple[Any, ...], value: Any, complaint: str) -> None:
    parameters, tensors = dumped()
    parameters = {name: list(each) if isinstance(each, tuple | list) else each for name, each in parameters.items()}
    edit(parameters, *path)(value)
    with pytest.raises(ArtifactError, match=complaint):
        load(tmp_path, parameters, tensors)


@pytest.mark.parametrize(
    ("name", "tensor", "complaint"),
    [
        ("term.1.weight", None, r"no tensor 'term\.1\.weight'; got \['term\.0\.weight'"),
        ("term.1.weight", torch.ones(D_FF - 1), r"got torch\.float32 \(23,\), wanted torch\.float32 \(24,\)"),
        ("term.1.weight", torch.zeros(D_FF), r"term\.1\.weight: got zeros, which score nothing"),
        ("term.2.weight", torch.ones(D_FF), r"got tensor 'term\.2\.weight' that the manifest does not describe"),
    ],
)
def test_a_broken_tensor(tmp_path: Path, name: str, tensor: Tensor | None, complaint: str) -> None:
    parameters, tensors = dumped()
    tensors.pop(name, None)
    if tensor is not None:
        tensors[name] = tensor
    with pytest.raises(ArtifactError, match=complaint):
        load(tmp_path, parameters, tensors)


def test_a_bound_guard_has_a_part_for_each_judgement() -> None:
    bound = SPANS.bind(spans(0, 2), torch.device("cpu"), WHOLE)
    labels = ("prompt, span", "prompt, mean", "answer, span")
    assert bound.parts == tuple(
        Part(label, (0, 2), each.over_tokens) for label, each in zip(labels, JUDGEMENTS, strict=True)
    )
    assert [(column.place, column.part) for column in bound.columns] == [
        (Place(layer, Site.KEY), part) for layer in (0, 2) for part in range(3)
    ]
    assert bound.taus == tuple(each.tau for each in JUDGEMENTS)


def test_a_guard_of_the_residual_stream_says_so() -> None:
    """And one of key vectors says nothing, as before there were others."""
    guard = replace(spans(), site=Site.RESIDUAL)
    assert SPANS.dump(guard)[0]["site"] == "residual"
    assert "site" not in SPANS.dump(spans())[0]
    bound = BoundSpans(guard, torch.device("cpu"), Shard(1, 2))
    assert {(each.place.site, each.over_ranks) for each in bound.columns} == {(Site.RESIDUAL, OverRanks.SAME)}
    width = len(guard.terms[0].weight_F)
    assert torch.equal(bound.at(bound.columns[0].place, width).weight_GF[0], guard.terms[0].weight_F)
    with pytest.raises(AttachError, match="residual is 26 long, not 24"):
        bound.at(bound.columns[0].place, width + 2)
