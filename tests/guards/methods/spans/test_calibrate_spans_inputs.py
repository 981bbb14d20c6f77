"""What a calibration over spans makes of its options and examples, on a tiny model."""

import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch

from guards.artifact.canaries import CANARY_DATE, encode_source
from guards.calibration.accumulated import read_texts, turns_of
from guards.calibration.corpus import SIDES, encode_corpora
from guards.core.verdict import Scope
from guards.errors import CalibrationError, DataError
from guards.inside.transformers.loading import LoadedModel
from guards.methods.spans import calibrate as calibrating
from guards.methods.spans import directions, passes
from guards.methods.spans.calibrate import SpanCalibration, calibrate
from guards.methods.spans.guard import DirectionFitter, SpanGuard, Windows
from guards.methods.spans.options import QUESTION_FRAME, SpanOptions
from guards.model.sites import Site
from tests.guards.attached import keys
from tests.guards.tiny import DATED_TEMPLATE, sources, sums, tiny_loaded, words
from tests.models import LAYERS

OPTIONS = SpanOptions(recall=0.9, max_false_abstention=0.2, material="none", longest=64, answers=0)
LOOSE = replace(OPTIONS, max_false_abstention=0.5)
"""With which a guard comes of a few texts, too."""


def tiny(**changes: Any) -> LoadedModel:
    return tiny_loaded(max_position_embeddings=1024, **changes)


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return tiny()


@pytest.fixture(scope="module")
def calibration(loaded: LoadedModel) -> SpanCalibration:
    """The default frames and layers."""
    return calibrate(loaded, *sources(160), OPTIONS)


def test_a_frame_that_was_not_calibrated_is_told_apart_too(loaded: LoadedModel, calibration: SpanCalibration) -> None:
    """Unlike a cube, which is bound to its frame."""
    guard, fired = calibration.guard, {}
    assert isinstance(guard, SpanGuard)
    taus = torch.tensor([each.tau for each in guard.judgements])
    for side, texts in (("forget", sums(220)[160:]), ("retain", words(220)[160:])):
        ids = [loaded.codec.encode_frame("Q: {text}\nA: ", text) for text in texts]
        values = []
        for each in ids:
            key = {term.layer: keys(loaded.model, torch.tensor([each]), term.layer) for term in guard.terms}
            told = [key[term.layer] @ term.weight_F - term.offset for term in guard.terms]
            values.append(torch.stack(told).sum(dim=0).detach())
        turns = [turns_of(each, loaded.codec.openings) for each in ids]
        read = read_texts(values, turns, [each.over_tokens for each in guard.judgements])
        fired[side] = sum(bool((read_TP[-1] <= taus).any()) for read_TP in read) / len(ids)
    assert fired["forget"] > 0.8
    assert fired["retain"] < 0.2


@pytest.mark.parametrize(("changes", "first"), [({"chat_template": None}, ()), ({}, ("chat",))])
def test_default_frames_are_several(changes: dict[str, Any], first: tuple[str, ...]) -> None:
    result = calibrate(tiny(**changes), *sources(80), replace(LOOSE, scope=Scope.PROMPT))
    assert result.record.frames == (*first, "bare", QUESTION_FRAME)
    assert (result.record.template_sha256 is not None) is bool(first)
    assert result.guard.scope is Scope.PROMPT


def test_frames_and_a_layer_that_are_given_are_all(loaded: LoadedModel) -> None:
    result = calibrate(loaded, *sources(80), replace(LOOSE, frames=("bare",), layer=0))
    assert result.record.frames == ("bare",)
    assert [each.layers for each in result.candidates] == [(0,)]
    assert result.guard.layers == (0,)


def test_at_most_so_many_windows_a_side_are_fitted(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    options = replace(OPTIONS, frames=("chat",), layer=1)
    assert all(count > 100 for count in calibrate(loaded, *sources(), options).windows.values()), "positive control"
    bounds = {"FIT_WINDOWS": 100, "FIT_BYTES": 100 * len(SIDES) * loaded.width(Site.KEY) * 4}
    for name, value in bounds.items():
        with monkeypatch.context() as patched:
            patched.setattr(passes, name, value)
            thinned = calibrate(loaded, *sources(), options)
        assert thinned.windows == {"forget": 100, "retain": 100}
        assert any("100 forget and 100 retain windows" in note for note in thinned.record.notes)


@pytest.mark.parametrize(("width", "layers"), [(1536, 12), (4864, 12), (8192, 6)])
def test_the_bound_by_bytes_is_none_for_models_of_up_to_a_billion_parameters(width: int, layers: int) -> None:
    """SmolLM2-135M, Qwen2.5-0.5B, Llama-3.2-1B."""
    assert passes.most_windows(layers, width) == passes.FIT_WINDOWS
    llama = passes.most_windows(6, 14336)
    assert 0.99 * passes.FIT_BYTES < 2 * 6 * 14336 * 4 * llama <= passes.FIT_BYTES


def test_what_was_fitted_on_is_kept_no_longer(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows, and the fitter's scaled ones, are some GB of a large model, and only counts of them are needed."""
    made: list[weakref.ref[Any]] = []

    def windows(*args: Any) -> Windows:
        found = read_windows(*args)
        made.extend(weakref.ref(each) for each in (found, *found.key_NF.values()))
        return found

    def fitter(*args: Any) -> DirectionFitter:
        found = DirectionFitter(*args)
        made.append(weakref.ref(found))
        return found

    def read(*_: Any) -> None:
        raise CalibrationError(f"alive: {sum(each() is not None for each in made)};")

    read_windows = passes.read_windows
    monkeypatch.setattr(calibrating, "read_windows", windows)
    monkeypatch.setattr(calibrating, "read_values", read)
    monkeypatch.setattr(directions, "DirectionFitter", fitter)
    with pytest.raises(CalibrationError, match="alive: 0;"):
        calibrate(loaded, *sources(80), replace(LOOSE, frames=("chat",)))
    assert len(made) == len(SIDES) * (1 + LAYERS) + 1


def test_canaries_are_not_of_the_day_on_which_they_were_read() -> None:
    loaded = tiny(chat_template=DATED_TEMPLATE)
    options = replace(OPTIONS, frames=("chat",), max_false_abstention=0.05)
    for canary in calibrate(loaded, *sources(80), options).canaries:
        assert canary.messages is not None
        assert encode_source(loaded.codec, canary.messages) == canary.token_ids
        today = loaded.codec.encode_chat([message.model_dump() for message in canary.messages])
        assert today != canary.token_ids, "positive control: the template writes the day"


def test_what_a_calibration_reads_is_not_of_the_day_on_which_it_runs() -> None:
    loaded = tiny(chat_template=DATED_TEMPLATE)
    text = sources(1)[0][0].texts[0]
    [forget, _] = encode_corpora(*sources(1), ("chat",), loaded.codec, None)
    assert forget.encoded["chat"] == (loaded.codec.on_day(CANARY_DATE).encode_frame("chat", text),)
    assert forget.encoded["chat"] != (loaded.codec.encode_frame("chat", text),), "positive control"


def test_few_examples_are_refused_or_warned_about(loaded: LoadedModel) -> None:
    few = calibrate(loaded, *sources(60), replace(OPTIONS, frames=("bare",), max_false_abstention=0.01))
    assert any("15 retain examples for the threshold cannot show a" in warning for warning in few.warnings)
    forget, retain = sources(3)
    with pytest.raises(CalibrationError, match="got 3 forget and 3 retain examples, wanted at least 4 and 4"):
        calibrate(loaded, forget, retain, OPTIONS)
    with pytest.raises(CalibrationError, match="got no retain examples"):
        calibrate(loaded, forget, [], OPTIONS)
    with pytest.raises(DataError, match="both the forget and the retain"):
        calibrate(loaded, forget, forget, OPTIONS)


def test_a_model_that_overflows_is_refused() -> None:
    broken = tiny()
    torch.nn.init.constant_(broken.model.model.layers[0].mlp.down_proj.weight, torch.inf)
    with pytest.raises(CalibrationError, match="not finite"):
        calibrate(broken, *sources(20), OPTIONS)
