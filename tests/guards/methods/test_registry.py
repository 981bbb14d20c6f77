"""The registry: what is in it, what an installed package adds, and which entry an artifact belongs to."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import tests.toys
from guards.artifact.store import read_artifact
from guards.core.verdict import GuardKind
from guards.errors import ArtifactError, MethodError
from guards.methods.cube.guard import CubeGuard
from guards.methods.registry import (
    CUBE,
    LUNAR,
    LUNAR_ABSTAIN,
    LUNAR_TRAINED,
    NEURON_ADJUST,
    PROBE,
    PROBE_PROJECT,
    RMU,
    SELECTIVE_PRUNING,
    SPANS,
    load_guard,
    method_of,
    methods,
    names,
    variants,
)
from tests.guards.samples import SAMPLES, cubes, manifest, neuron_adjust, spans, write_raw
from tests.models import D_FF
from tests.toys import HALVING
from tests.toys import PROBE as TOY_PROBE
from tests.toys.installed import installed
from tests.toys.probe.guard import ProbeGuard

KNOWN = (
    "wanted one of ksd paper, ksd spans, lunar abstain, lunar redirect, lunar trained, neuron-adjust, probe detect, "
    "probe project, "
    "rmu adaptive, rmu cosine, rmu probe, rmu rmu, selective-pruning"
)


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Nothing that a test installs stays."""
    yield
    methods.cache_clear()


def test_every_entry_is_found_by_its_name_and_variant() -> None:
    assert {(entry.name, entry.variant): entry for entry in methods().values()} == dict(methods())
    shipped = [
        SPANS,
        CUBE,
        PROBE,
        PROBE_PROJECT,
        NEURON_ADJUST,
        SELECTIVE_PRUNING,
        LUNAR,
        LUNAR_ABSTAIN,
        LUNAR_TRAINED,
        *RMU,
    ]
    assert list(methods().values()) == shipped
    assert names() == ["ksd", "probe", "neuron-adjust", "selective-pruning", "lunar", "rmu"]


def test_there_is_a_sample_of_every_entry() -> None:
    """So that a claim about each of them meets every one."""
    assert set(SAMPLES) == set(methods().values())


def test_the_first_variant_is_the_default() -> None:
    assert list(variants("ksd").items()) == [("spans", SPANS), ("paper", CUBE)]
    assert list(variants("lunar").items()) == [
        ("redirect", LUNAR),
        ("abstain", LUNAR_ABSTAIN),
        ("trained", LUNAR_TRAINED),
    ]
    assert variants("neuron-adjust") == {"": NEURON_ADJUST}
    assert variants("astrology") == {}


class TestInstalled:
    """Methods that a package beside this one brings."""

    def test_its_entries_are_found_after_the_shipped_ones(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shipped = list(methods().values())
        with installed(tmp_path, monkeypatch):
            found = list(methods().values())
            assert found[: len(shipped)] == shipped
            assert set(found[len(shipped) :]) == {TOY_PROBE, HALVING}
            assert methods()["toy-probe", None] is TOY_PROBE
            assert variants("toy-halving") == {"": HALVING}
            assert {"toy-probe", "toy-halving"} < set(names())
        assert list(methods().values()) == shipped, "positive control: only where it is installed"

    def test_its_artifacts_are_read(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        guard = ProbeGuard((0, 2), torch.randn(2, manifest("toy-probe", {}).model.d_model), 0.5)
        parameters, tensors = TOY_PROBE.dump(guard)
        artifact = read_artifact(write_raw(tmp_path / "a", "toy-probe", parameters, dict(tensors)))
        with pytest.raises(ArtifactError, match=f"got method 'toy-probe', {KNOWN}"):
            method_of(artifact)
        with installed(tmp_path / "site", monkeypatch):
            assert method_of(artifact) is TOY_PROBE
            loaded = load_guard(artifact)
        assert isinstance(loaded, ProbeGuard)
        assert torch.equal(loaded.weight_LD, guard.weight_LD)

    def test_a_variant_of_a_shipped_method_is_not_its_default(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tests.toys, "VARIANT", replace(TOY_PROBE, name="ksd", variant="a-probe"), raising=False)
        with installed(tmp_path / "site", monkeypatch, "tests.toys:VARIANT"):
            assert list(variants("ksd")) == ["spans", "paper", "a-probe"]
            assert names() == ["ksd", "probe", "neuron-adjust", "selective-pruning", "lunar", "rmu"]
            parameters, tensors = CUBE.dump(cubes())
            del parameters["variant"]
            assert method_of(read_artifact(write_raw(tmp_path / "a", "ksd", parameters, dict(tensors)))) is CUBE

    @pytest.mark.parametrize(
        ("entries", "complaint"),
        [
            (
                ("guards.methods.neuron_adjust.entry:NEURON_ADJUST",),
                r"\('neuron-adjust', None\) is registered twice: by guards\.methods\.neuron_adjust and guards",
            ),
            (
                ("tests.toys:IMPOSTOR",),
                r"\('ksd', 'spans'\) is registered twice: by guards\.methods\.spans and tests\.toys\.probe",
            ),
            (
                ("tests.toys:PROBE", "tests.toys:RIVAL"),
                r"\('toy-probe', None\) is registered twice: by tests\.toys\.\w+ and tests\.toys\.\w+",
            ),
        ],
    )
    def test_two_entries_of_one_key_are_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entries: tuple[str, ...], complaint: str
    ) -> None:
        monkeypatch.setattr(tests.toys, "IMPOSTOR", replace(TOY_PROBE, name="ksd", variant="spans"), raising=False)
        monkeypatch.setattr(tests.toys, "RIVAL", replace(HALVING, name="toy-probe"), raising=False)
        with installed(tmp_path, monkeypatch, *entries), pytest.raises(MethodError, match=complaint):
            methods()

    @pytest.mark.parametrize("entry", ["tests.toys:NOTHING", "tests.no_such_package:PROBE", "tests.toys:__doc__"])
    def test_what_cannot_be_used_is_refused_by_name(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entry: str
    ) -> None:
        with installed(tmp_path, monkeypatch, entry), pytest.raises(MethodError, match=entry):
            methods()


class TestArtifact:
    """Which entry made an artifact."""

    def test_an_unknown_method_is_refused_with_the_known_ones(self, tmp_path: Path) -> None:
        artifact = read_artifact(write_raw(tmp_path / "a", "astrology", {}, {"x": torch.zeros(1)}))
        for act in (method_of, load_guard):
            with pytest.raises(ArtifactError, match=f"^a: got method 'astrology', {KNOWN}: a newer skillguard"):
                act(artifact)

    @pytest.mark.parametrize("variant", ["spheres", "Pooled", "Spans", "", 1, True, ["spans"], {"spans": 1}])
    @pytest.mark.parametrize("entry", [CUBE, SPANS])
    def test_an_unknown_variant_is_refused_with_the_known_ones(
        self, tmp_path: Path, entry: Any, variant: object
    ) -> None:
        parameters, tensors = entry.dump(SAMPLES[entry]())
        artifact = read_artifact(write_raw(tmp_path / "a", "ksd", {**parameters, "variant": variant}, tensors))
        for act in (method_of, load_guard):
            with pytest.raises(ArtifactError) as refusal:
                act(artifact)
            assert str(refusal.value).startswith(f"a: got method 'ksd', variant {variant!r}, {KNOWN}: ")

    def test_a_retired_variant_is_refused_with_what_to_do(self, tmp_path: Path) -> None:
        """As the artifacts of Key Space Detection on the mean of all tokens were written."""
        terms = [{"layer": 2, "offset": 0.5}]
        parameters = {"variant": "pooled", "tau": 0.5, "terms": terms}
        artifact = read_artifact(write_raw(tmp_path / "a", "ksd", parameters, {"term.0.weight": torch.ones(D_FF)}))
        for act in (method_of, load_guard):
            with pytest.raises(ArtifactError) as refusal:
                act(artifact)
            assert str(refusal.value) == (
                "a: got method 'ksd', variant 'pooled', which is retired: calibrate the guard again with "
                "`skillguard calibrate ksd`"
            )

    def test_a_variant_of_a_method_that_has_none_is_refused(self, tmp_path: Path) -> None:
        parameters, tensors = NEURON_ADJUST.dump(neuron_adjust())
        parameters["variant"] = "paper"
        artifact = read_artifact(write_raw(tmp_path / "a", "neuron-adjust", parameters, dict(tensors)))
        with pytest.raises(ArtifactError, match=f"got method 'neuron-adjust', variant 'paper', {KNOWN}"):
            load_guard(artifact)

    def test_key_space_detection_without_a_variant_holds_cubes(self, tmp_path: Path) -> None:
        parameters, tensors = CUBE.dump(cubes())
        assert parameters.pop("variant") == "paper"
        artifact = read_artifact(write_raw(tmp_path / "a", "ksd", parameters, dict(tensors)))
        assert method_of(artifact) is CUBE
        assert isinstance(load_guard(artifact), CubeGuard)

    @pytest.mark.parametrize("guard", [cubes(), spans()], ids=["cubes", "spans"])
    def test_a_variant_that_is_null_is_none_of_them(self, tmp_path: Path, guard: Any) -> None:
        parameters, tensors = (CUBE if isinstance(guard, CubeGuard) else SPANS).dump(guard)
        parameters["variant"] = None
        artifact = read_artifact(write_raw(tmp_path / "a", "ksd", parameters, dict(tensors)))
        with pytest.raises(ArtifactError, match=r"parameters\.variant"):
            load_guard(artifact)

    def test_the_kinds_are_the_methods(self) -> None:
        kinds = {entry: entry.kind for entry in methods().values()}
        assert kinds == {
            SPANS: GuardKind.DETECTOR,
            CUBE: GuardKind.DETECTOR,
            PROBE: GuardKind.DETECTOR,
            PROBE_PROJECT: GuardKind.INTERVENTION,
            NEURON_ADJUST: GuardKind.INTERVENTION,
            SELECTIVE_PRUNING: GuardKind.INTERVENTION,
            LUNAR: GuardKind.INTERVENTION,
            LUNAR_ABSTAIN: GuardKind.DETECTOR,
            LUNAR_TRAINED: GuardKind.INTERVENTION,
            **dict.fromkeys(RMU, GuardKind.INTERVENTION),
        }
