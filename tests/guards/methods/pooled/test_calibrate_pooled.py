"""Calibrating the pooled variant on a tiny model: promises, layers, tau, warnings, canaries and bytes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from guards.artifact.canaries import encode_source
from guards.artifact.store import read_artifact
from guards.calibration.corpus import Share
from guards.calibration.sources import Source
from guards.calibration.thresholds import below, rate_of
from guards.core.verdict import Scope
from guards.errors import CalibrationError, DataError
from guards.inside.transformers.loading import LoadedModel
from guards.methods.pooled import calibrate as module
from guards.methods.pooled.calibrate import Candidate, PooledCalibration, best, candidate_layers, place
from guards.methods.pooled.calibrate import calibrate as calibrate_pooled
from guards.methods.pooled.guard import LayerWeights, PooledGuard, mean_scores
from guards.methods.pooled.options import PooledOptions
from guards.methods.registry import POOLED, load_guard, method_of
from tests.guards.attached import keys
from tests.guards.tiny import DATED_TEMPLATE, sources, sums, tiny_loaded, words
from tests.guards.verified import disagreements

CAP = 0.05
"""What 60 retain texts a frame can show; the default of 0.005 needs 199."""
RECALL = 0.9
OPTIONS = PooledOptions(recall=RECALL, max_false_abstention=CAP)


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return tiny_loaded()


@pytest.fixture(scope="module")
def calibration(loaded: LoadedModel) -> PooledCalibration:
    """The default frames and layers."""
    return calibrate_pooled(loaded, *sources(), OPTIONS)


@pytest.mark.parametrize(
    ("count", "layers"),
    [
        (1, (0,)),
        (2, (1,)),
        (3, (1, 2)),
        (5, (2, 3, 4)),
        (6, (3, 4, 5)),
        (8, (4, 5, 6, 7)),
        (32, (16, 21, 26, 31)),
    ],
)
def test_layers_looked_at_are_of_the_upper_half(count: int, layers: tuple[int, ...]) -> None:
    assert candidate_layers(count) == layers


def test_it_keeps_its_promises_on_held_out_parts(calibration: PooledCalibration) -> None:
    assert [frame.frame for frame in calibration.frames] == ["chat", "bare", "Q: {text}\nA:"]
    for frame in calibration.frames:
        assert frame.recall.total == frame.false_abstention.total == 60, "a quarter of 240"
        assert frame.recall.rate >= RECALL
        assert frame.false_abstention.rate <= CAP
        assert frame.recall == rate_of(frame.forget_E <= calibration.chosen.tau)
    record = calibration.record
    assert record.recall == min((frame.recall for frame in calibration.frames), key=lambda rate: rate.rate)
    assert record.false_abstention is not None
    assert record.false_abstention.rate == max(frame.false_abstention.rate for frame in calibration.frames)
    assert record.frames == ("chat", "bare", "Q: {text}\nA:")
    assert record.template_sha256 is not None


def test_a_frame_that_was_not_calibrated_is_told_apart_too(loaded: LoadedModel, calibration: PooledCalibration) -> None:
    """Unlike a cube, which is bound to its frame."""
    guard, scores = calibration.guard, {}
    assert isinstance(guard, PooledGuard)
    for role, texts in (("forget", sums(300)[240:]), ("retain", words(300)[240:])):
        found = []
        for text in texts:
            ids = torch.tensor([loaded.codec.encode_frame("Q: {text}\nA: ", text)])
            with torch.no_grad():
                means = {layer: keys(loaded.model, ids, layer).mean(dim=0)[None] for layer in guard.layers}
            found.append(float(mean_scores(guard.terms, means)) <= guard.tau)
        scores[role] = sum(found) / len(found)
    assert scores["forget"] > 0.8
    assert scores["retain"] < 0.1


def test_the_chosen_candidate_separates_best(calibration: PooledCalibration) -> None:
    assert [each.layers for each in calibration.candidates] == [(1,), (2,), (1, 2)]
    assert calibration.chosen is best(calibration.candidates)
    assert round(calibration.chosen.auroc, 3) == max(round(each.auroc, 3) for each in calibration.candidates)
    assert isinstance(calibration.guard, PooledGuard)
    assert calibration.guard.layers == calibration.chosen.layers


def candidate(layers: int, auroc: float, margin: float) -> Candidate:
    """A candidate over that many layers that ends at the last of three."""
    none = rate_of(torch.zeros(0, dtype=torch.bool))
    terms = tuple(LayerWeights(3 - layers + i, torch.ones(1), 0.0) for i in range(layers))
    return Candidate(terms, 0, auroc, margin, 0.5, auroc, none, none)


def test_of_equal_separation_room_then_more_layers_count() -> None:
    one, two, three = candidate(1, 0.9991, 0.4), candidate(2, 0.9994, 0.4), candidate(1, 0.9, 0.9)
    assert best([one, two, three]) is two
    assert best([replace(one, margin=0.5), two]).layers == (2,)
    assert best([one, replace(two, auroc=0.99)]) is one


def test_tau_is_midway_or_tight_and_the_cap_wins() -> None:
    """Frames of 99 texts: the 99th of a hundred is needed, the first of a hundred is the bound."""
    forget, retain = [torch.linspace(0, 0.4, 99), torch.linspace(0, 0.2, 99)], [torch.linspace(0.8, 2, 99)] * 2
    options = replace(OPTIONS, recall=0.99, max_false_abstention=0.01)
    tau, margin = place(forget, retain, options)
    assert tau == pytest.approx(0.6, abs=1e-6), "between the worst frames of both sides"
    assert margin == pytest.approx(0.4, abs=1e-6)
    tight, _ = place(forget, retain, replace(options, placement="tight"))
    assert tight == pytest.approx(0.4, abs=1e-6)
    tau, margin = place(forget, [retain[0], torch.linspace(0.1, 2, 99)], options)
    assert margin < 0
    assert tau == below(0.1), "none of the retain texts fires, and some of the forget texts no more"


def _mixed(share: int) -> tuple[list[Source], list[Source]]:
    """240 sums to forget; retain texts of which every `share`-th is a sum too."""
    hidden, rest = sums(480, seed=7), words(240)
    mixed = tuple(hidden[240 + i] if i % share == 0 else rest[i] for i in range(240))
    return [Source("sums", hidden[:240])], [Source("mixed", mixed)]


def test_the_cap_wins_over_recall(loaded: LoadedModel) -> None:
    options = PooledOptions(frames=("chat",), max_false_abstention=0.9)
    loose = calibrate_pooled(loaded, *_mixed(20), options)
    assert loose.frames[0].false_abstention.rate > 0.06, "positive control: a twentieth of the retain texts are sums"
    capped = calibrate_pooled(loaded, *_mixed(20), replace(options, max_false_abstention=0.04))
    (result,) = capped.frames
    assert capped.chosen.margin < 0
    assert result.tau < loose.frames[0].tau
    assert result.recall.rate < loose.frames[0].recall.rate
    assert any("tau was lowered" in warning for warning in capped.warnings)
    assert any("tau was lowered" in note for note in capped.record.notes)


def test_at_most_so_many_vectors_a_side_are_fitted(
    loaded: LoadedModel, calibration: PooledCalibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert calibration.vectors == 3 * 120, "half of the examples, in every frame"
    monkeypatch.setattr(module, "FIT_VECTORS", 100)
    thinned = calibrate_pooled(loaded, *sources(), OPTIONS)
    assert thinned.vectors == 100
    assert any("100 forget and 100 retain mean" in note for note in thinned.record.notes)
    assert thinned.chosen.reported_auroc > 0.99


def test_thinning_takes_of_every_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIT_VECTORS", 5)
    job: Any = type("Job", (), {"frames": ("a", "b"), "layers": (1,)})
    means: dict[Any, dict[int, Tensor]] = {
        ("forget", Share.FIT, frame): {1: torch.arange(6.0)[:, None] + first} for frame, first in (("a", 0), ("b", 10))
    }
    kept = module._fit_part(job, means, "forget")[1][:, 0].tolist()
    assert len(kept) == 5
    assert (kept[0], kept[-1]) == (0, 15)
    assert {value >= 10 for value in kept} == {True, False}


def test_the_same_input_gives_the_same_bytes(loaded: LoadedModel, tmp_path: Path) -> None:
    digests = set()
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        result = calibrate_pooled(loaded, *sources(80), replace(OPTIONS, frames=("chat",), seed=seed))
        digests.add(result.save(tmp_path / name, "sums"))
    for file in ("manifest.json", "tensors.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert len(digests) == 2, "positive control: another seed splits otherwise"


def test_canaries_agree_when_read_back_and_attached(calibration: PooledCalibration, tmp_path: Path) -> None:
    calibration.save(tmp_path / "guard", "sums")
    artifact = read_artifact(tmp_path / "guard")
    canaries = artifact.manifest.canaries
    assert method_of(artifact) is calibration.method is POOLED
    assert {canary.fires for canary in canaries} == {True, False}
    assert all(len(canary.scores) == 1 for canary in canaries)
    for canary in canaries:
        ratio = canary.scores[0] / calibration.chosen.tau
        assert ratio <= 0.9 if canary.fires else ratio >= 1.1
    guard = load_guard(artifact)
    assert disagreements(tiny_loaded(), POOLED, guard, canaries) == []
    assert disagreements(tiny_loaded(seed=5), POOLED, guard, canaries) != [], "positive control: other weights"


def test_canaries_say_what_their_ids_were_encoded_from(calibration: PooledCalibration) -> None:
    by_kind = [canary.messages is not None for canary in calibration.canaries]
    assert (by_kind.count(True), by_kind.count(False)) == (4, 8), "two of each side in each frame, one of them chat"
    codec = tiny_loaded().codec
    for canary in calibration.canaries:
        assert canary.source is not None
        assert encode_source(codec, canary.source) == canary.token_ids
    texts = [canary.text for canary in calibration.canaries if canary.text is not None]
    assert sum(text.startswith("Q: ") and text.endswith("\nA:") for text in texts) == 4


def test_canaries_are_not_of_the_day_on_which_they_were_read() -> None:
    loaded = tiny_loaded(chat_template=DATED_TEMPLATE)
    for canary in calibrate_pooled(loaded, *sources(80), replace(OPTIONS, frames=("chat",))).canaries:
        assert canary.messages is not None
        assert encode_source(loaded.codec, canary.messages) == canary.token_ids
        today = loaded.codec.encode_chat([message.model_dump() for message in canary.messages])
        assert today != canary.token_ids, "positive control: the template writes the day"


@pytest.mark.parametrize(("template", "first"), [(None, ()), ("default", ("chat",))])
def test_default_frames_are_several(template: str | None, first: tuple[str, ...]) -> None:
    model = tiny_loaded() if template else tiny_loaded(chat_template=None)
    result = calibrate_pooled(model, *sources(80), replace(OPTIONS, scope=Scope.PROMPT))
    assert result.record.frames == (*first, "bare", "Q: {text}\nA:")
    assert (result.record.template_sha256 is None) is (template is None)
    assert result.guard.scope is Scope.PROMPT


def test_frames_that_are_given_are_all(loaded: LoadedModel) -> None:
    assert calibrate_pooled(loaded, *sources(80), replace(OPTIONS, frames=("bare",))).record.frames == ("bare",)


def test_a_layer_that_is_given_is_the_only_one(loaded: LoadedModel) -> None:
    result = calibrate_pooled(loaded, *sources(80), replace(OPTIONS, frames=("chat",), layer=0))
    assert [each.layers for each in result.candidates] == [(0,)]
    assert isinstance(result.guard, PooledGuard)
    assert result.guard.layers == (0,)
    assert result.frames[0].layers == (0,)
    with pytest.raises(CalibrationError, match="got `layer` 3, wanted 0 to 2"):
        calibrate_pooled(loaded, *sources(8), PooledOptions(layer=3))


def test_a_skill_that_cannot_be_told_apart_is_refused(loaded: LoadedModel) -> None:
    texts = sums(400)
    with pytest.raises(CalibrationError, match=r"nothing was written .*AUROC 0\.[3-6]"):
        calibrate_pooled(loaded, [Source("a", texts[:200])], [Source("b", texts[200:])], PooledOptions())


@pytest.mark.parametrize(
    ("margin", "reason"), [(-0.1, r"raise `max_false_abstention` 0\.05"), (0.1, r"raise `recall` 0\.9")]
)
@pytest.mark.parametrize("tau", [0.0, -0.25])
def test_a_tau_that_no_artifact_may_hold_is_refused_for_that(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch, tau: float, margin: float, reason: str
) -> None:
    """Not for its recall, which may be high enough."""
    monkeypatch.setattr(module, "place", lambda forget, retain, options: (tau, margin))
    monkeypatch.setattr(module, "MIN_RECALL", 0.0)
    with pytest.raises(CalibrationError, match=rf"^tau {tau:.3g} is not above 0, .*nothing was written .*{reason}$"):
        calibrate_pooled(loaded, *sources(80), replace(OPTIONS, frames=("chat",)))


def test_a_source_that_needs_the_skill_is_named(loaded: LoadedModel) -> None:
    forget, retain = _mixed(240)
    result = calibrate_pooled(
        loaded, forget, [*retain, Source("more sums", sums(540, seed=7)[480:])], PooledOptions(max_false_abstention=0.3)
    )
    assert any("on more sums alone; the cap holds on all" in warning for warning in result.warnings)
    assert not any("on mixed alone" in warning for warning in result.warnings)


def test_few_examples_are_refused_or_warned_about(loaded: LoadedModel) -> None:
    few = calibrate_pooled(loaded, *sources(60), PooledOptions(frames=("chat",)))
    assert any("only 30 key vectors" in warning for warning in few.warnings)
    assert any("15 retain examples for the threshold cannot show a" in warning for warning in few.warnings)
    forget, retain = sources(3)
    with pytest.raises(CalibrationError, match="got 3 forget and 3 retain examples, wanted at least 4 and 4"):
        calibrate_pooled(loaded, forget, retain, PooledOptions())
    with pytest.raises(CalibrationError, match="got no retain examples"):
        calibrate_pooled(loaded, forget, [], PooledOptions())
    with pytest.raises(DataError, match="both the forget and the retain"):
        calibrate_pooled(loaded, forget, forget, PooledOptions())


def test_a_model_that_overflows_is_refused() -> None:
    broken = tiny_loaded()
    torch.nn.init.constant_(broken.model.model.layers[0].mlp.down_proj.weight, torch.inf)
    with pytest.raises(CalibrationError, match="not finite"):
        calibrate_pooled(broken, *sources(20), PooledOptions())
