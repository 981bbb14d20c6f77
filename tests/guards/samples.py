"""Small guards and artifacts that tests write, read and damage."""

import hashlib
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from guards.artifact.manifest import UNSEALED, CalibrationRecord, Canary, Manifest, ModelIdentity, Rate, SourceRecord
from guards.artifact.store import MANIFEST_NAME, TENSORS_NAME, write_artifact
from guards.calibration.entry import Entry
from guards.contract.accumulate import TOKEN
from guards.contract.guard import Guard
from guards.contract.spans import MessageMean, Rise
from guards.core.verdict import Scope
from guards.methods.cube.guard import Cube, CubeGuard, Regime
from guards.methods.delta import Factors
from guards.methods.lunar.guard import LunarGuard
from guards.methods.neuron_adjust.guard import Draw, LayerStatistics, NeuronAdjustGuard
from guards.methods.probe_project.guard import Boundary, ProjectionGuard
from guards.methods.registry import (
    CUBE,
    LUNAR,
    LUNAR_ABSTAIN,
    LUNAR_TRAINED,
    NEURON_ADJUST,
    PROBE,
    PROBE_PROJECT,
    SELECTIVE_PRUNING,
    SPANS,
)
from guards.methods.rmu.entry import VARIANTS
from guards.methods.rmu.guard import RmuGuard
from guards.methods.rmu.options import VariantName
from guards.methods.selective_pruning.guard import Importance, PruningGuard
from guards.methods.spans.guard import Judgement, LayerWeights, SpanGuard
from guards.model.sites import Site
from tests.models import D_FF, D_MODEL, LAYERS

IDENTITY = ModelIdentity(
    architecture="LlamaForCausalLM",
    layers=LAYERS,
    d_model=D_MODEL,
    d_ff=D_FF,
    dtype="float32",
    tokenizer_sha256="cd" * 32,
    weights_sha256="ab" * 32,
)
CALIBRATION = CalibrationRecord(
    tool="skillguard 0.1.0",
    frames=("bare",),
    template_sha256=None,
    sources=(SourceRecord(role="forget", name="sums.jsonl", sha256="cd" * 32, examples=40, tokens=900),),
    recall=Rate(hits=19, total=20, rate=0.95, low=0.75, high=0.999),
    false_abstention=None,
)


def cube(layer: int = LAYERS - 1, *, tau: float = 3.0, frame: str = "bare", seed: int = 0) -> Cube:
    """A cube of random means and deviations."""
    generator = torch.Generator().manual_seed(seed)
    mean_F = torch.randn(D_FF, generator=generator)
    std_F = 0.5 + torch.rand(D_FF, generator=generator)
    return Cube(layer, frame, mean_F, std_F, k=tau, tau=tau)


def cubes(*of: Cube) -> CubeGuard:
    """A detector of these cubes, or of one at the last layer."""
    return CubeGuard(of or (cube(),), Scope.BOTH, Regime.LAST_TOKEN)


JUDGEMENTS = (
    Judgement(Rise(0.5, written=False), 0.25),
    Judgement(MessageMean(2.0, written=False), 0.5),
    Judgement(Rise(0.25, written=True), 0.2),
)
MEAN_ALONE = (Judgement(MessageMean(1.0, written=False), 0.75),)
"""The plainest: half of the evidence of a text of one token, and fires where that is a quarter."""


LAST_ALONE = (Judgement(TOKEN, 0.5),)
"""A probe of the last token."""


def spans(
    *layers: int, judgements: tuple[Judgement, ...] = JUDGEMENTS, site: Site = Site.KEY, d_attention: int = D_MODEL
) -> SpanGuard:
    """A detector over spans at these layers, or at two, with random weights."""
    terms, width = [], {Site.KEY: D_FF, Site.RESIDUAL: D_MODEL, Site.ATTENTION: d_attention}[site]
    for layer in layers or (1, LAYERS - 1):
        generator = torch.Generator().manual_seed(layer)
        terms.append(LayerWeights(layer, torch.randn(width, generator=generator), 0.1 * (layer + 1)))
    return SpanGuard(tuple(terms), judgements, Scope.BOTH, site)


def probes() -> SpanGuard:
    """Probes of the residual stream at three layers."""
    return spans(*range(LAYERS), site=Site.RESIDUAL)


def projections(*layers: int, beta: float = 1.5) -> ProjectionGuard:
    """An intervention on the residual stream after these layers, or after all: half of all tokens lie beyond each."""
    boundaries = []
    for layer in layers or range(LAYERS):
        w_D = torch.randn(D_MODEL, generator=torch.Generator().manual_seed(layer))
        boundaries.append(Boundary(layer, torch.nn.functional.normalize(w_D, dim=0), 0.01 * (layer + 1), usual=2.0))
    return ProjectionGuard(tuple(boundaries), beta)


def layer_statistics(*neurons: int) -> LayerStatistics:
    """Gaussians wide enough that random pre-activations are shifted about half of the time."""
    index_S = torch.tensor(neurons)
    size = len(neurons)
    return LayerStatistics(
        index_S, torch.full((size,), 0.5), torch.ones(size), torch.full((size,), -0.5), torch.full((size,), 1.5)
    )


def neuron_adjust(draw: Draw = Draw.CERTAIN) -> NeuronAdjustGuard:
    """An intervention on two layers."""
    chosen = {0: layer_statistics(1, 5, 9), 2: layer_statistics(0, D_FF - 1)}
    return NeuronAdjustGuard(chosen, fraction=5 / (LAYERS * D_FF), draw=draw, seed=7)


def pruned(d_attention: int = D_MODEL) -> PruningGuard:
    """An intervention on feed-forward neurons of two layers and attention neurons of two, one of them the same."""
    feed_forward = {0: torch.tensor([1, 5, 9]), 2: torch.tensor([0, D_FF - 1])}
    attention = {0: torch.tensor([3]), 1: torch.tensor([2, D_MODEL - 1])}
    return PruningGuard(
        feed_forward,
        attention,
        d_attention=d_attention,
        fraction=5 / (LAYERS * D_FF),
        attention_fraction=3 / (LAYERS * d_attention),
        steps=1,
        importance=Importance.ABS,
    )


def factors(rank: int = 1, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Factors:
    """A random change of one layer, of a size that is felt."""
    generator = torch.Generator().manual_seed(seed)
    a_RF = torch.randn(rank, D_FF, generator=generator) / D_FF**0.5
    b_DR = torch.randn(D_MODEL, rank, generator=generator)
    return Factors(a_RF.to(dtype), b_DR.to(dtype), usual=2.0)


def lunar(layer: int = 1) -> LunarGuard:
    """An intervention on the output of one layer."""
    return LunarGuard({layer: factors()}, reference="unanswerable", strength=2.0, ridge=1e-3)


def lunar_trained(layer: int = 1) -> LunarGuard:
    """The same, trained: of any rank, in bfloat16."""
    return LunarGuard({layer: factors(2, dtype=torch.bfloat16)}, reference="refused", strength=2.0, ridge=None)


def rmu(variant: VariantName = "adaptive", *, rank: int = 2) -> RmuGuard:
    """An intervention on the outputs of three layers, as it is calibrated."""
    deltas = {layer: factors(rank, seed=layer, dtype=torch.bfloat16) for layer in range(LAYERS)}
    return RmuGuard(variant, deltas)


def manifest(method: str, parameters: dict[str, Any], **changes: Any) -> Manifest:
    """A manifest of a well-formed artifact; the tensor digest is filled in by the writer."""
    record: dict[str, Any] = {
        "method": method,
        "skill": "sums",
        "scope": Scope.BOTH,
        "model": IDENTITY,
        "parameters": parameters,
        "calibration": CALIBRATION,
        "canaries": (Canary(token_ids=(1, 5, 9), scores=(2.5,), fires=True),),
        "tensors_sha256": "0" * 64,
    }
    return Manifest(**{**record, **changes})


SAMPLES: Mapping[Entry, Callable[[], Guard]] = {
    SPANS: spans,
    CUBE: cubes,
    PROBE: probes,
    PROBE_PROJECT: projections,
    NEURON_ADJUST: neuron_adjust,
    SELECTIVE_PRUNING: pruned,
    LUNAR: lunar,
    LUNAR_ABSTAIN: partial(spans, 1),
    LUNAR_TRAINED: lunar_trained,
    **{entry: partial(rmu, variant) for variant, entry in VARIANTS.items()},
}
"""A guard of every entry of the registry."""

each_entry = pytest.mark.parametrize(
    "entry", list(SAMPLES), ids=["-".join(filter(None, (entry.name, entry.variant))) for entry in SAMPLES]
)
"""For a claim about every method."""


def write(folder: Path, entry: Entry = CUBE, guard: Guard | None = None, **changes: Any) -> Path:
    """A valid artifact of one method at `folder`."""
    parameters, tensors = entry.dump(SAMPLES[entry]() if guard is None else guard)
    write_artifact(folder, manifest(entry.name, parameters, **changes), tensors)
    return folder


def write_raw(folder: Path, method: str, parameters: dict[str, Any], tensors: dict[str, Tensor]) -> Path:
    """An artifact whose files agree with each other but whose content is up to the caller."""
    write_artifact(folder, manifest(method, parameters), tensors)
    return folder


def replace(folder: Path, old: bytes, new: bytes) -> None:
    """Edits the manifest's bytes in place; the old bytes must be there exactly once."""
    path = folder / MANIFEST_NAME
    data = path.read_bytes()
    assert data.count(old) == 1, (old, data.count(old))
    path.write_bytes(data.replace(old, new))


def files(folder: Path) -> dict[str, bytes]:
    """The two files' bytes."""
    return {name: (folder / name).read_bytes() for name in (MANIFEST_NAME, TENSORS_NAME)}


def seal(folder: Path) -> None:
    """Makes both digests of an edited artifact right again, so that only the edit itself can be refused."""
    path = folder / MANIFEST_NAME
    text = path.read_text()
    record = json.loads(text)
    tensors = hashlib.sha256((folder / TENSORS_NAME).read_bytes()).hexdigest()
    text = text.replace(record["tensors_sha256"], tensors).replace(record["manifest_sha256"], UNSEALED)
    path.write_text(text.replace(UNSEALED, hashlib.sha256(text.encode()).hexdigest()))
