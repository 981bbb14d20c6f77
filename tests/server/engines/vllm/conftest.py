"""Engines that several tests share: starting vLLM takes some seconds."""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import pytest

from artifacts.demo.build.rows import SKILLS
from guards.calibration.sources import Source, read_source
from guards.inside.transformers.loading import load_model
from guards.methods.cube.calibrate import calibrate as calibrate_cubes
from guards.methods.cube.options import CubeOptions
from guards.methods.lunar.calibrate import calibrate as calibrate_lunar
from guards.methods.lunar.options import LunarOptions
from guards.methods.probe.calibrate import calibrate as calibrate_probe
from guards.methods.probe.options import ProbeOptions
from guards.methods.probe_project.calibrate import calibrate as calibrate_projections
from guards.methods.probe_project.options import ProjectOptions
from guards.methods.rmu.calibrate import calibrate as calibrate_rmu
from guards.methods.rmu.options import AdaptiveOptions
from guards.methods.selective_pruning.calibrate import calibrate as calibrate_pruning
from guards.methods.selective_pruning.options import PruningOptions
from guards.methods.spans.calibrate import calibrate as calibrate_spans
from guards.methods.spans.options import SpanOptions
from tests.server.engines.vllm.live import DEMO, MODEL, Live, embedded, live, on_vllm
from tests.server.engines.vllm.processes import forked


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every test of this folder starts vLLM, whose processes and imports warn in ways that are not ours."""
    for item in items:
        if "engines/vllm/" in item.nodeid:
            item.add_marker(pytest.mark.vllm)
            item.add_marker(pytest.mark.filterwarnings("default"))


COVERAGE = "COVERAGE_PROCESS_CONFIG"
"""By which coverage.py, where it measures, has child processes measured too."""
Measured = Callable[[], AbstractContextManager[None]]


@pytest.fixture(scope="package", autouse=True)
def measured() -> Iterator[Measured]:
    """Has the processes measured that vLLM starts within it, and no others: it takes them 40 % longer.

    Compiled ones would show nothing anyway, since their guards are no Python.
    """
    value = os.environ.pop(COVERAGE, None)

    @contextmanager
    def measured() -> Iterator[None]:
        if value is not None:
            os.environ[COVERAGE] = value
        try:
            yield
        finally:
            os.environ.pop(COVERAGE, None)

    # Coverage begins where a process does, so not in one that is forked.
    with nullcontext() if value is not None else forked():
        yield measured
    if value is not None:
        os.environ[COVERAGE] = value


def _cubes(folder: Path, skill: str) -> str:
    """An artifact of the variant `paper` at `folder`, for a skill of the demo."""
    forget, *retain = (
        read_source(str(DEMO / "data" / f"{each}.calibration.jsonl"), limit=limit)
        for each, limit in ((skill, None), *((other, 300) for other in SKILLS if other != skill))
    )
    options = CubeOptions(frames=("chat", "Q: {text}\nA:"), recall=0.99, placement="middle", layer=4)
    calibrate_cubes(load_model(MODEL, "cpu", "float32"), [forget], retain, options).save(folder, skill)
    return str(folder)


@pytest.fixture(scope="session")
def cube(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An artifact of cubes named ksd-en, which also fires while English is written, in answers of other skills too."""
    return _cubes(tmp_path_factory.mktemp("guards") / "ksd-en", "en")


@pytest.fixture(scope="session")
def sums_cube(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An artifact of cubes named ksd-mathematics: it judges the last token, whatever came long before."""
    return _cubes(tmp_path_factory.mktemp("guards") / "ksd-mathematics", "mathematics")


@pytest.fixture(scope="package")
def engine(cube: str, measured: Measured) -> Iterator[Live]:
    """Two guards that judge prompts and one that also fires while English is written; uncompiled."""
    with measured(), live(on_vllm("ksd-mathematics", "ksd-code", cube, flags=("--enforce-eager",))) as running:
        yield running


@pytest.fixture(scope="package")
def reference(cube: str) -> Iterator[Live]:
    """The same guards on the embedded engine."""
    with live(embedded("ksd-mathematics", "ksd-code", cube)) as running:
        yield running


def _sources(*skills: str) -> list[Source]:
    """Sixty prompts of each skill of the demo."""
    return [read_source(str(DEMO / "data" / f"{skill}.calibration.jsonl"), limit=60) for skill in skills]


@pytest.fixture(scope="session")
def mask(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An artifact that prunes the demo's facts, feed-forward and attention, in two steps."""
    forget, *retain = _sources("facts", "mathematics", "code", "zh", "en")
    options = PruningOptions(frames=("chat",), fraction=0.01, attention_fraction=0.005, steps=2)
    folder: Path = tmp_path_factory.mktemp("guards") / "sp-facts"
    calibrate_pruning(load_model(MODEL, "cpu", "float32"), [forget], retain, options).save(folder, "facts")
    return str(folder)


@pytest.fixture(scope="session")
def change(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An artifact that redirects the demo's facts, by a change of one layer that each request may do without."""
    forget, *retain = _sources("facts", "mathematics", "code", "zh", "en")
    folder: Path = tmp_path_factory.mktemp("guards") / "lunar-facts"
    options = LunarOptions(frames=("chat",), material="none", layer=4, ridge=1e-3, strength=4)
    calibrate_lunar(load_model(MODEL, "cpu", "float32"), [forget], retain, options).save(folder, "facts")
    return str(folder)


@pytest.fixture(scope="session")
def projecting(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An artifact that takes the demo's facts out of the residual stream, behind several layers."""
    forget, *retain = _sources("facts", "mathematics", "code", "zh", "en")
    folder: Path = tmp_path_factory.mktemp("guards") / "project-facts"
    options = ProjectOptions(frames=("chat",), material="none", longest=64, aggregation="last", beta=32.0)
    made = calibrate_projections(load_model(MODEL, "cpu", "float32"), [forget], retain, options)
    made.save(folder, "facts")
    assert len(made.guard.layers) > 1
    return str(folder)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An artifact of deltas of a higher rank at three layers, found by eight steps of training on the demo's code."""
    forget, *retain = _sources("code", "mathematics", "facts", "zh", "en")
    folder: Path = tmp_path_factory.mktemp("guards") / "rmu-code"
    short = AdaptiveOptions(frames=("chat",), layer=3, steps=8, batch=2, length=48, rate=1e-3, max_rank=16)
    calibrate_rmu(load_model(MODEL, "cpu", "float32"), [forget], retain, short).save(folder, "code")
    return str(folder)


@pytest.fixture(scope="session")
def spans(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An artifact of the default variant that abstains on the demo's mathematics, over several layers."""
    forget, *retain = _sources("mathematics", "facts", "code", "zh", "en")
    folder: Path = tmp_path_factory.mktemp("guards") / "ksd-spans"
    options = SpanOptions(frames=("chat",), material="none", longest=200, answers=8)
    calibration = calibrate_spans(load_model(MODEL, "cpu", "float32"), [forget], retain, options)
    calibration.save(folder, "mathematics")
    assert len(calibration.chosen.layers) > 1
    assert len(calibration.judgements) == 4, "prompts and answers"
    return str(folder)


@pytest.fixture(scope="session")
def probe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An artifact of probes that read what attention puts out at a prompt's last token, over several layers."""
    forget, *retain = _sources("mathematics", "facts", "code", "zh", "en")
    folder: Path = tmp_path_factory.mktemp("guards") / "probe-mathematics"
    tokens = ProbeOptions(frames=("chat",), material="none", longest=64, aggregation="last", site="attention")
    calibration = calibrate_probe(load_model(MODEL, "cpu", "float32"), [forget], retain, tokens)
    calibration.save(folder, "mathematics")
    assert len(calibration.chosen.layers) > 1
    return str(folder)
