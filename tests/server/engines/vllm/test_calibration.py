"""Calibrating on vLLM: the same guards as on transformers, sharded and chunked as it may be, and quantised ones.

The demo model in float32, so that the two engines differ by the order of sums alone.
"""

import asyncio
import gc
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from guards.artifact.identity import refuse_mismatch
from guards.artifact.store import Artifact, read_artifact
from guards.calibration.activations import Activations, Pass, TokenIds, Tokens
from guards.calibration.sources import Source, read_source
from guards.core.verdict import Reading
from guards.errors import ArtifactMismatchError
from guards.inside.transformers.loading import LoadedModel, load_model
from guards.methods.cube.calibrate import CubeCalibration
from guards.methods.cube.calibrate import calibrate as calibrate_cubes
from guards.methods.cube.options import CubeOptions
from guards.methods.neuron_adjust.calibrate import calibrate as calibrate_neuron_adjust
from guards.methods.neuron_adjust.options import NeuronAdjustOptions
from guards.methods.selective_pruning.calibrate import calibrate as calibrate_pruning
from guards.methods.selective_pruning.options import PruningOptions
from guards.methods.spans.calibrate import calibrate as calibrate_spans
from guards.methods.spans.options import SpanOptions
from guards.model.sites import Site
from server.cli.main import main
from server.engines.options import EmbeddedOptions, VllmOptions
from tests.server.engines.vllm.conftest import Measured
from tests.server.engines.vllm.live import DEMO, MODEL, SMALL
from tests.server.engines.vllm.quantised import save_gptq, save_int8

EAGER = ("--enforce-eager", *SMALL)
CHUNKED = ("--max-num-batched-tokens", "32", "--max-num-seqs", "4")
"""Most prompts take several passes, beside others."""
OPTIONS = CubeOptions(frames=("chat",), max_false_abstention=0.05)


@pytest.fixture(autouse=True)
def _collected() -> Iterator[None]:
    """vLLM's sockets are closed when they are collected, with warnings that belong to the test they come from."""
    yield
    gc.collect()


def _sources() -> tuple[list[Source], list[Source]]:
    def source(skill: str) -> Source:
        return read_source(str(DEMO / "data" / f"{skill}.calibration.jsonl"), limit=120)

    return [source("mathematics")], [source("code"), source("facts")]


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load_model(MODEL, "cpu", "float32")


@pytest.fixture(scope="module")
def embedded(loaded: LoadedModel) -> CubeCalibration:
    return calibrate_cubes(loaded, *_sources(), OPTIONS)


def _activations(model: Path, sites: Sequence[Site], *flags: str, **changes: Any) -> Any:
    from server.engines.vllm.capture import VllmActivations

    return VllmActivations(VllmOptions(model=str(model), flags=flags), *sites, **changes)


async def _served(engine: Any, prompts: Sequence[TokenIds] = ()) -> tuple[dict[str, str | None], list[Reading]]:
    """What verification says, and the first guard's reading of each prompt."""
    await engine.start()
    try:
        verified = dict(await engine.verify())
        readings = [(await engine.check(ids, f"check-{i}"))[0].reading for i, ids in enumerate(prompts)]
    finally:
        await engine.stop()
    return verified, readings


def _serve(engine: Any, prompts: Sequence[TokenIds] = ()) -> tuple[dict[str, str | None], list[Reading]]:
    return asyncio.run(_served(engine, prompts))


def _on_vllm(model: Path, *artifacts: Path, flags: tuple[str, ...]) -> Any:
    from server.engines.vllm.engine import VllmEngine

    return VllmEngine(VllmOptions(model=str(model), artifacts=artifacts, flags=flags))


def _on_transformers(*artifacts: Path) -> Any:
    from server.engines.embedded.engine import EmbeddedEngine

    return EmbeddedEngine(EmbeddedOptions(model=str(MODEL), artifacts=artifacts, device="cpu"))


def _prompts(loaded: LoadedModel, skill: str, count: int) -> list[TokenIds]:
    lines = (DEMO / "data" / f"{skill}.test.jsonl").read_text().splitlines()[:count]
    return [loaded.codec.encode_frame("chat", json.loads(line)["prompt"]) for line in lines]


def _verdicts(artifact: Artifact) -> list[tuple[TokenIds, bool]]:
    return [(canary.token_ids, canary.fires) for canary in artifact.manifest.canaries]


def test_ksd_is_the_same_on_both_engines_and_serves_on_either(
    loaded: LoadedModel, embedded: CubeCalibration, tmp_path: Path
) -> None:
    with _activations(MODEL, [Site.KEY], *EAGER, *CHUNKED) as model:
        assert model.identity == loaded.identity
        calibration = calibrate_cubes(model, *_sources(), OPTIONS)
    embedded.save(tmp_path / "embedded", "mathematics")
    calibration.save(tmp_path / "vllm", "mathematics")
    ours, theirs = (read_artifact(tmp_path / name) for name in ("embedded", "vllm"))
    assert theirs.manifest.model == ours.manifest.model
    assert [frame.chosen.fit.cube.layer for frame in calibration.frames] == [
        frame.chosen.fit.cube.layer for frame in embedded.frames
    ]
    assert calibration.frames[0].tau == pytest.approx(embedded.frames[0].tau, rel=1e-4)
    for name, tensor in ours.tensors.items():
        torch.testing.assert_close(theirs.tensors[name], tensor, rtol=1e-4, atol=1e-4)
    assert _verdicts(theirs) == _verdicts(ours)
    both = (tmp_path / "embedded", tmp_path / "vllm")
    verified, readings = _serve(_on_vllm(MODEL, *both, flags=EAGER), _prompts(loaded, "mathematics", 4))
    assert verified == {"embedded": None, "vllm": None}
    assert readings == [Reading.INSIDE] * 4
    verified, _ = _serve(_on_transformers(*both))
    assert verified == {"embedded": None, "vllm": None}


def test_spans_are_the_same_on_both_engines_answers_too(loaded: LoadedModel, tmp_path: Path) -> None:
    """The model answers through the engine that serves, greedily: the same answers, and the same taus."""
    options = SpanOptions(frames=("chat",), material="none", longest=100, answers=6, layer=4)
    forget, retain = ([replace(each, texts=each.texts[:24]) for each in side] for side in _sources())
    ours = calibrate_spans(loaded, forget, retain, options)
    prompts = _prompts(loaded, "facts", 3)
    with _activations(MODEL, [Site.KEY], *EAGER, *CHUNKED) as model:
        assert model.write(prompts, 6) == loaded.write(prompts, 6)
        theirs = calibrate_spans(model, forget, retain, options)
    assert [each.label for each in theirs.judgements] == [each.label for each in ours.judgements]
    assert len(theirs.judgements) == 4
    for got, wanted in zip(theirs.judgements, ours.judgements, strict=True):
        assert got.over_tokens == wanted.over_tokens
        assert got.tau == pytest.approx(wanted.tau, rel=1e-3)
    assert [each.token_ids for each in theirs.canaries] == [each.token_ids for each in ours.canaries]
    theirs.save(tmp_path / "vllm", "mathematics")
    assert _serve(_on_transformers(tmp_path / "vllm"))[0] == {"vllm": None}


def test_neuron_adjust_from_the_command_line(loaded: LoadedModel, tmp_path: Path) -> None:
    options = NeuronAdjustOptions(frames=("chat",), fraction=0.05, draw="certain")
    calibrate_neuron_adjust(loaded, *_sources(), options).save(tmp_path / "embedded", "mathematics")
    data = DEMO / "data"
    words = [
        *("calibrate", "neuron-adjust", "--engine", "vllm", "--model", str(MODEL), "--skill", "mathematics"),
        *(
            "--forget",
            str(data / "mathematics.calibration.jsonl"),
            "--limit",
            "120",
            "--output",
            str(tmp_path / "vllm"),
        ),
        *("--retain", str(data / "code.calibration.jsonl"), "--retain", str(data / "facts.calibration.jsonl")),
        *("--frame", "chat", "--fraction", "0.05", "--draw", "certain", *EAGER),
    ]
    assert main(words) == 0
    ours, theirs = (read_artifact(tmp_path / name) for name in ("embedded", "vllm"))
    assert theirs.manifest.model == ours.manifest.model
    for name, tensor in ours.tensors.items():
        torch.testing.assert_close(theirs.tensors[name], tensor, rtol=1e-4, atol=1e-4)
    assert _verdicts(theirs) == _verdicts(ours)
    assert (_serve(_on_transformers(tmp_path / "vllm")))[0] == {"vllm": None}


def test_pruning_from_the_command_line_measures_again_with_the_mask_in_the_graph(
    loaded: LoadedModel, tmp_path: Path
) -> None:
    options = PruningOptions(frames=("chat",), fraction=0.02, attention_fraction=0.005, steps=2)
    for name, given in (("embedded", options), ("once", replace(options, steps=1))):
        calibrate_pruning(loaded, *_sources(), given).save(tmp_path / name, "mathematics")
    data = DEMO / "data"
    words = [
        *(
            "calibrate",
            "selective-pruning",
            "--engine",
            "vllm",
            "--model",
            str(MODEL),
            "--skill",
            "mathematics",
            "--limit",
            "120",
        ),
        *("--forget", str(data / "mathematics.calibration.jsonl"), "--output", str(tmp_path / "vllm")),
        *("--retain", str(data / "code.calibration.jsonl"), "--retain", str(data / "facts.calibration.jsonl")),
        *("--frame", "chat", "--attention-fraction", "0.005", "--steps", "2", *EAGER),
    ]
    assert main(words) == 0
    ours, theirs, once = (read_artifact(tmp_path / name) for name in ("embedded", "vllm", "once"))
    assert theirs.manifest.model == ours.manifest.model
    assert theirs.tensors.keys() == ours.tensors.keys()
    for name, tensor in ours.tensors.items():
        assert torch.equal(theirs.tensors[name], tensor), name
    assert sum(map(len, ours.tensors.values())) == 2 * sum(map(len, once.tensors.values()))
    assert _verdicts(theirs) == _verdicts(ours)
    assert (_serve(_on_transformers(tmp_path / "vllm")))[0] == {"vllm": None}


def _collect(model: Activations, site: Site, examples: Sequence[TokenIds], tokens: Tokens) -> dict[Any, Tensor]:
    """Activations [T, F] by layer and example, in order of position."""
    seen: dict[Any, list[Tensor]] = {}

    def consume(layer: int, x_TF: Tensor, example_T: Tensor) -> None:
        for example in dict.fromkeys(example_T.tolist()):
            seen.setdefault((layer, example), []).append(x_TF[example_T == example].clone())

    layers = tuple(range(model.identity.layers))
    model.stream(Pass(site, layers, tokens, skip=(4, 3)), examples, consume)
    return {at: torch.cat(found) for at, found in seen.items()}


@pytest.mark.parametrize(
    ("sites", "flags"),
    [
        ([Site.PRE_ACTIVATION], ("--enforce-eager", "--tensor-parallel-size", "2", *CHUNKED)),
        ([Site.KEY, Site.ATTENTION], ("--tensor-parallel-size", "2")),
        ([Site.ATTENTION, Site.KEY], ("--enforce-eager", "--pipeline-parallel-size", "2")),
    ],
)
def test_ranks_give_what_one_process_gives(
    loaded: LoadedModel, measured: Measured, sites: list[Site], flags: tuple[str, ...]
) -> None:
    examples = [*_prompts(loaded, "mathematics", 20), *_prompts(loaded, "code", 20)]
    with measured(), _activations(MODEL, sites, *SMALL, *flags, group_bytes=2_000_000) as model:
        for site, tokens in product(sites, Tokens):
            wanted, got = (_collect(each, site, examples, tokens) for each in (loaded, model))
            assert got.keys() == wanted.keys()
            for at, x_TF in wanted.items():
                torch.testing.assert_close(got[at], x_TF, rtol=1e-4, atol=1e-3)
        again = _collect(model, site, examples, tokens)
    assert all(torch.equal(again[at], x_TF) for at, x_TF in got.items()), "batches depend on when requests arrived"


KERNELS = {"auto_gptq": "cpu_gemm_wna16"}
"""What vLLM brings for processors with AVX-512 only."""


def _has_kernel(name: str) -> bool:
    import vllm._custom_ops  # noqa: F401  # it loads the processor's kernels

    return hasattr(torch.ops._C, name)


@pytest.mark.parametrize(
    ("name", "save", "flags"),
    [
        ("compressed-tensors.int-quantized", save_int8, ()),
        ("auto_gptq", save_gptq, ()),
        ("int8_per_channel_weight_only", None, ("--quantization", "int8_per_channel_weight_only")),
    ],
)
def test_a_quantised_model_is_calibrated_and_served_as_it_is(
    loaded: LoadedModel, tmp_path: Path, name: str, save: Callable[[Path, Path], Path] | None, flags: tuple[str, ...]
) -> None:
    from server.engines.vllm.config import TESTED_QUANTISATION

    assert name in TESTED_QUANTISATION
    if (kernel := KERNELS.get(name)) is not None and not _has_kernel(kernel):
        pytest.skip(f"vLLM's kernels for this processor have no {kernel}: it runs no {name}")
    folder = MODEL if save is None else save(MODEL, tmp_path / "model")
    flags = (*EAGER, "--dtype", "bfloat16", *flags)  # of two number formats, vLLM takes the later
    with _activations(folder, [Site.KEY], *flags) as model:
        live = model.identity
        calibration = calibrate_cubes(model, *_sources(), OPTIONS)
    assert (live.quantization, live.dtype) == (name, "bfloat16")
    calibration.save(tmp_path / "ksd-mathematics", "mathematics")
    engine = _on_vllm(folder, tmp_path / "ksd-mathematics", flags=flags)
    prompts = [*_prompts(loaded, "mathematics", 20), *_prompts(loaded, "code", 20)]
    verified, readings = _serve(engine, prompts)
    assert verified == {"ksd-mathematics": None}
    assert readings[:20].count(Reading.INSIDE) >= 15, readings  # of wordings that no calibration prompt had
    assert readings[20:] == [Reading.OUTSIDE] * 20
    unquantised = live.model_copy(update={"quantization": None})
    with pytest.raises(ArtifactMismatchError, match=f"quantization: model has None, artifact wants '{name}'"):
        refuse_mismatch(read_artifact(tmp_path / "ksd-mathematics"), unquantised)
