"""The gate of a change as a detector: the same w, whether the change acts or not, and rates of texts that neither was
fitted on.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from guards.artifact.store import read_artifact
from guards.calibration.corpus import encode_corpora
from guards.contract.combination import beside
from guards.core.beside import Beside
from guards.errors import ArtifactError, ArtifactMismatchError, CalibrationError
from guards.inside.transformers.loading import LoadedModel
from guards.methods.lunar.calibrate import LunarCalibration
from guards.methods.lunar.calibrate import calibrate as calibrate_lunar
from guards.methods.lunar.change import read_change
from guards.methods.lunar.guard import LunarGuard
from guards.methods.lunar.options import LunarOptions
from guards.methods.lunar_abstain.options import AbstainOptions
from guards.methods.registry import LUNAR, LUNAR_ABSTAIN, load_guard, method_of
from guards.methods.spans.calibrate import SpanCalibration
from guards.methods.spans.guard import SpanGuard
from guards.model.shard import WHOLE
from tests.guards.attached import attach, keys, read, take
from tests.guards.methods.spans.test_calibrate_spans import TURNED
from tests.guards.samples import lunar, spans, write, write_raw
from tests.guards.tiny import sources, tiny_loaded
from tests.guards.verified import disagreements
from tests.models import tokens

QUICK: dict[str, Any] = {"recall": 0.9, "max_false_abstention": 0.2, "material": "none", "longest": 32}
QUICK |= {"answers": 0, "frames": ("chat",)}


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return tiny_loaded(chat_template=TURNED, max_position_embeddings=1024)


@pytest.fixture(scope="module")
def change(loaded: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("changes") / "lunar-sums"
    made = calibrate_lunar(loaded, *sources(120), LunarOptions(frames=("chat",), material="none"))
    assert isinstance(made, LunarCalibration)
    made.save(folder, "sums")
    return folder


def calibrated(loaded: LoadedModel, change: Path | None, count: int = 120, **changes: Any) -> SpanCalibration:
    made = LUNAR_ABSTAIN.calibrate(loaded, *sources(count), AbstainOptions(**{**QUICK, "change": change, **changes}))
    assert isinstance(made, SpanCalibration)
    return made


@pytest.fixture(scope="module")
def abstains(loaded: LoadedModel, change: Path) -> SpanCalibration:
    return calibrated(loaded, change)


def gate(change: Path) -> tuple[int, torch.Tensor]:
    """The change's layer and its w."""
    guard = load_guard(read_artifact(change))
    assert isinstance(guard, LunarGuard)
    ((layer, each),) = guard.deltas.items()
    return layer, each.a_RF[0]


def test_its_values_are_w_k_to_a_scale(loaded: LoadedModel, change: Path, abstains: SpanCalibration) -> None:
    layer, w_F = gate(change)
    guard = abstains.guard
    assert isinstance(guard, SpanGuard)
    (term,) = guard.terms
    assert term.layer == layer
    said_T = keys(loaded.model, tokens(1, 6), layer) @ w_F
    value_T = keys(loaded.model, tokens(1, 6), layer) @ term.weight_F - term.offset
    slope = float((value_T[1] - value_T[0]) / (said_T[1] - said_T[0]))
    assert slope < 0, "w.k is large where the skill is, and a value is small there"
    torch.testing.assert_close(value_T, value_T[0] + slope * (said_T - said_T[0]), rtol=1e-3, atol=1e-4)


def test_it_keeps_what_a_guard_over_spans_promises(abstains: SpanCalibration) -> None:
    assert [each.label for each in abstains.judgements] == ["prompt, span", "prompt, mean"]
    assert abstains.record.false_abstention is not None
    assert abstains.record.false_abstention.low <= 0.2
    assert abstains.auroc > 0.6, "of random weights; held out"
    assert not any("was calibrated with" in each for each in abstains.warnings)
    assert any("the weights are w of lunar-sums, sha256:" in note for note in abstains.record.notes)


def test_the_artifact_verifies(loaded: LoadedModel, abstains: SpanCalibration, tmp_path: Path) -> None:
    abstains.save(tmp_path / "a", "sums")
    artifact = read_artifact(tmp_path / "a")
    assert method_of(artifact) is LUNAR_ABSTAIN
    assert any(canary.fires for canary in artifact.manifest.canaries)
    assert disagreements(loaded, LUNAR_ABSTAIN, load_guard(artifact), artifact.manifest.canaries) == []
    assert LUNAR_ABSTAIN.report(abstains)["layers"] == list(abstains.guard.layers)


@torch.no_grad()
def test_it_reads_the_same_whether_the_change_acts(
    loaded: LoadedModel, change: Path, abstains: SpanCalibration
) -> None:
    """So either may answer a text, by policy; a change of the layer before would not leave it alone."""
    acting, ids = load_guard(read_artifact(change)), tokens(2, 6)
    guards = {"abstains": (LUNAR_ABSTAIN, abstains.guard), "redirects": (LUNAR, acting)}
    bound = {name: of.bind(guard, torch.device("cpu"), WHOLE) for name, (of, guard) in guards.items()}
    assert beside(bound) == {"abstains": Beside(), "redirects": Beside()}
    with attach(loaded.model, abstains=abstains.guard, redirects=acting) as attachment:
        acted = read(loaded.model, attachment, ids)
        attachment.switch([(12, {"redirects"})])
        loaded.model(input_ids=ids)
        not_acted = take(attachment, 12)
    assert torch.equal(acted.scores["abstains"], not_acted.scores["abstains"])
    assert not torch.equal(acted.scores["redirects"], not_acted.scores["redirects"])  # positive control


def test_other_examples_than_the_changes_are_warned_of(loaded: LoadedModel, change: Path) -> None:
    found = calibrated(loaded, change, count=100, seed=1)
    for said in ("lunar-sums was calibrated with other examples", "lunar-sums was calibrated with seed 0, wanted 1"):
        assert any(said in each for each in found.warnings)
        assert any(said in note for note in found.record.notes), "an artifact says so itself"


def test_examples_are_the_same_by_their_texts_and_the_seed(loaded: LoadedModel, change: Path) -> None:
    def warned(seed: int, frames: tuple[str, ...] = ("chat",), count: int = 120) -> list[str]:
        of = read_change(change, loaded)
        return of.warnings(seed, encode_corpora(*sources(count), frames, loaded.codec, loaded.max_tokens))

    assert warned(0) == warned(0, frames=("chat", "bare")) == []
    (of_seed,), (of_texts,) = warned(7), warned(0, count=119)
    assert "calibrated with seed 0, wanted 7" in of_seed
    assert "calibrated with other examples" in of_texts


def test_what_is_no_change_of_this_model_is_refused(loaded: LoadedModel, change: Path, tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="got no `change`, wanted an artifact of the variant redirect"):
        calibrated(loaded, None)
    with pytest.raises(ArtifactError, match="got method 'ksd', variant 'paper', wanted 'lunar', 'redirect'"):
        calibrated(loaded, write(tmp_path / "ksd"))
    with pytest.raises(ArtifactError, match="got method 'lunar', variant 'abstain', wanted 'lunar', 'redirect'"):
        calibrated(loaded, write(tmp_path / "abstain", LUNAR_ABSTAIN, spans(1)))
    with pytest.raises(ArtifactMismatchError, match="was calibrated on another model"):
        calibrated(loaded, write(tmp_path / "lunar", LUNAR, lunar()))
    forget, retain = sources(60)
    with pytest.raises(CalibrationError, match="wanted it larger on forget ones"):
        LUNAR_ABSTAIN.calibrate(loaded, retain, forget, AbstainOptions(**{**QUICK, "change": change}))


@pytest.mark.parametrize("wrong", [{"site": "residual"}, {"layer": 1}])
def test_site_and_layer_are_those_of_the_change(wrong: dict[str, Any]) -> None:
    with pytest.raises(CalibrationError, match=next(iter(wrong))):
        AbstainOptions(**wrong)


def test_a_change_of_before_there_were_variants_is_one_that_redirects(tmp_path: Path) -> None:
    parameters, tensors = LUNAR.dump(lunar())
    assert parameters.pop("variant") == "redirect"
    artifact = read_artifact(write_raw(tmp_path / "a", "lunar", parameters, dict(tensors)))
    assert method_of(artifact) is LUNAR
    assert isinstance(load_guard(artifact), LunarGuard)
