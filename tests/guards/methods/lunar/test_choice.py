"""The choice of LUNAR's layer: answers under each change, compared with what is said to reference prompts.

Suffixes: D the residual stream's width.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from guards.calibration.activations import TokenIds
from guards.calibration.corpus import Share
from guards.calibration.sides import Advance
from guards.errors import CalibrationError
from guards.inside.transformers.loading import LoadedModel
from guards.methods.lunar.answers import Answers, Embedding, Likeness, Refusal, embedded
from guards.methods.lunar.calibrate import LunarCalibration, calibrate
from guards.methods.lunar.guard import LunarGuard
from guards.methods.lunar.job import Job, prepared
from guards.methods.lunar.options import LunarOptions
from guards.methods.registry import LUNAR
from guards.model.sites import Place, Site
from tests.guards.tiny import sources, tiny_loaded
from tests.models import D_MODEL

OPTIONS = LunarOptions(frames=("chat",), material="none", asked=4, asked_tokens=6)
LEAD = (1, 45, 44, 43)
"""What the template begins with."""


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return tiny_loaded(max_position_embeddings=256)


@pytest.fixture(scope="module")
def calibration(loaded: LoadedModel) -> LunarCalibration:
    return calibrate(loaded, *sources(40), OPTIONS)


def folded(loaded: LoadedModel, guard: LunarGuard) -> LoadedModel:
    """Another copy of the model, whose weight is the changed one."""
    copy = tiny_loaded(max_position_embeddings=256)
    for layer, each in guard.deltas.items():
        copy.model.model.layers[layer].mlp.down_proj.weight.data += each.b_DR @ each.a_RF
    return copy


@torch.no_grad()
def greedy(loaded: LoadedModel, prompt: TokenIds, tokens: int) -> TokenIds:
    """One token after another, without a cache and without a batch."""
    answer: list[int] = []
    while len(answer) < tokens:
        drawn = int(loaded.model(input_ids=torch.tensor([[*prompt, *answer]]), use_cache=False).logits[0, -1].argmax())
        if drawn == 2:
            break
        answer.append(drawn)
    return tuple(answer)


@torch.no_grad()
def state(loaded: LoadedModel, answer: TokenIds) -> Tensor:
    """The mean of what the middle block gives at an answer's tokens, behind LEAD."""
    kept: list[Tensor] = []
    handle = loaded.sites.tap(Place(1, Site.RESIDUAL)).module.register_forward_hook(
        lambda _, __, output: kept.append(output[0, len(LEAD) :])
    )
    loaded.model(input_ids=torch.tensor([[*LEAD, *answer]]), use_cache=False)
    handle.remove()
    return kept[0].double().mean(dim=0)


def test_answers_under_a_change_are_those_of_a_model_with_that_weight(
    loaded: LoadedModel, calibration: LunarCalibration
) -> None:
    """Of a batch with prompts of several lengths."""
    guard = calibration.guard
    assert isinstance(guard, LunarGuard)
    job = prepared(loaded, *sources(40), OPTIONS)
    prompts = [*job.asked("forget", Share.REPORT), *job.asked("retain", Share.REPORT)]
    with loaded.guarded(LUNAR, guard):
        changed = job.write(prompts)
    whole = folded(loaded, guard)
    assert changed == [greedy(whole, prompt, 6) for prompt in prompts]
    assert changed != job.write(prompts), "positive control: without the change it says something else"


def test_an_answer_is_embedded_alone_behind_the_opening(loaded: LoadedModel) -> None:
    answers = [(7, 9, 11), (), (20,), (5, 5, 30, 31, 32)]
    at_ED = Embedding(loaded, LEAD).of(answers)
    for answer, at_D in zip(answers, at_ED, strict=True):
        if answer:
            torch.testing.assert_close(at_D, state(loaded, answer), rtol=1e-4, atol=1e-5)
        else:
            assert bool(at_D.isnan().all())
    first, second = embedded(Embedding(loaded, LEAD), answers[:1], answers[1:])
    assert (first.ids, len(second.ids)) == (answers[:1], 3)
    torch.testing.assert_close(torch.cat([first.at_ED, second.at_ED]), at_ED, rtol=1e-4, atol=1e-5, equal_nan=True)


def kind(middle: int, count: int, spread: float = 0.3, empty: int = 0) -> Answers:
    """Answers around a unit vector of their own, beside a large part that all have in common."""
    generator = torch.Generator().manual_seed(middle)
    at_ED = 100 + spread * torch.randn(count, D_MODEL, generator=generator, dtype=torch.float64)
    at_ED[:, middle] += 3
    at_ED[:empty] = torch.nan
    return Answers([() if index < empty else (middle, index) for index in range(count)], at_ED)


class TestLikeness:
    """On constructed answers of three kinds."""

    REFERENCE, FORGET, RETAIN = kind(0, 8), kind(1, 6), kind(2, 6)

    def refusal(self) -> Refusal:
        return Refusal(self.REFERENCE, self.FORGET, self.RETAIN)

    def test_the_unchanged_model_keeps_all_and_refuses_nothing(self) -> None:
        refusal = self.refusal()
        unchanged = refusal.judge(self.FORGET, self.RETAIN, self.RETAIN)
        assert unchanged.kept == pytest.approx(1)
        assert unchanged.alike < 0 < 0.8 < refusal.own, "though what all have in common is 30 times as long"
        assert refusal.told == 1

    def test_forget_answers_that_became_refusals_are_alike(self) -> None:
        refusal = self.refusal()
        redirected = refusal.judge(kind(0, 6, spread=0.2), self.RETAIN, self.RETAIN)
        assert redirected.alike > 0.8
        assert redirected.deviation < 0.2

    def test_retain_answers_that_became_refusals_are_not_kept(self) -> None:
        refusal = self.refusal()
        broken = refusal.judge(kind(0, 6), kind(0, 6), self.RETAIN)
        assert broken.alike > 0.8
        assert broken.kept < 0.2
        assert broken.deviation > refusal.judge(kind(0, 6), self.RETAIN, self.RETAIN).deviation

    def test_an_answer_without_tokens_says_nothing_but_the_same(self) -> None:
        refusal, silent = self.refusal(), kind(2, 6, empty=6)
        assert refusal.judge(silent, silent, silent) == Likeness(0.0, 1.0)
        assert refusal.judge(self.FORGET, silent, self.RETAIN).kept == 0
        assert refusal.judge(self.FORGET, self.RETAIN, kind(2, 6, empty=3)).kept < 0.6

    def test_reference_answers_that_are_like_the_skills_are_told_badly(self) -> None:
        mixed = replace(self.FORGET, at_ED=self.REFERENCE.at_ED[:6])
        assert Refusal(self.REFERENCE, mixed, self.RETAIN).told < 0.75 < self.refusal().told

    def test_one_answer_is_too_few(self) -> None:
        with pytest.raises(CalibrationError, match="got 1 answers to 3 reference prompts, wanted 2 or more"):
            Refusal(kind(0, 3, empty=2), self.FORGET, self.RETAIN)


def test_the_layer_is_the_one_under_which_answers_are_as_wanted(
    loaded: LoadedModel, calibration: LunarCalibration
) -> None:
    """Every candidate's figures, from the copy that has its weight, a prompt at a time."""
    job, embedding = prepared(loaded, *sources(40), OPTIONS), Embedding(loaded, LEAD)
    assert job.opening() == LEAD

    def answered(model: LoadedModel) -> list[list[TokenIds]]:
        prompts = [job.asked("forget", Share.THRESHOLD), job.asked("retain", Share.THRESHOLD)]
        return [[greedy(model, prompt, 6) for prompt in of] for of in prompts]

    reference = [greedy(loaded, prompt, 6) for prompt in job.asked_reference()]
    own, forget, retain = embedded(embedding, reference, *answered(loaded))
    refusal = Refusal(own, forget, retain)
    found = []
    for each in calibration.candidates:
        changed = embedded(embedding, *answered(folded(loaded, each.guard(OPTIONS))))
        likeness = refusal.judge(changed[0], changed[1], retain)
        assert (each.likeness.alike, each.likeness.kept) == pytest.approx((likeness.alike, likeness.kept), abs=1e-4)
        assert each.quoted == tuple(map(loaded.codec.decode, changed[0].ids[:3]))
        found.append(likeness.deviation)
    assert calibration.chosen is calibration.candidates[found.index(min(found))]
    assert max(found) > min(found) + 0.02, "positive control: layers differ"
    assert calibration.unchanged.kept == 1


def test_why_it_was_chosen_is_in_the_report_and_the_manifest(calibration: LunarCalibration) -> None:
    said = LUNAR.report(calibration)
    assert [each["layer"] for each in said["candidates"]] == [0, 1, 2]
    assert all({"alike", "kept", "deviation", "answers"} < each.keys() for each in said["candidates"])
    assert len(said["unchanged_answers"]["reference"]) == 3
    shown = LUNAR.table(calibration)
    assert [row[0] for row in shown.rows] == ["none", "0", "1", "2"]
    assert [row[-1] for row in shown.rows].count("chosen") == 1
    noted = next(note for note in calibration.record.notes if "by which the layer was chosen" in note)
    assert all(f"layer {each.layer} {each.likeness.alike:.3f}" in noted for each in calibration.candidates)
    assert all(drawn.startswith(b"\x89PNG") for drawn in LUNAR.module("shown").plots(calibration, "sums").values())


def test_it_is_the_same_every_time_and_of_few_candidates(loaded: LoadedModel) -> None:
    options = replace(OPTIONS, candidates=2, asked_tokens=4)
    one, other = (calibrate(loaded, *sources(24), options) for _ in range(2))
    assert LUNAR.report(one) == LUNAR.report(other)
    assert [each.layer for each in one.candidates] == [0, 2]


def test_a_model_that_answers_reference_prompts_as_the_skill_is_warned_of(loaded: LoadedModel) -> None:
    """A head that always draws the same token."""
    stuck = tiny_loaded(max_position_embeddings=256)
    stuck.model.lm_head.weight.data[:] = 0
    found = calibrate(stuck, *sources(24), replace(OPTIONS, layer=1))
    assert any("the model answers reference prompts much as it does the skill's" in each for each in found.warnings)
    assert found.chosen.likeness.kept == 1
    assert not any("are answered otherwise" in each for each in found.warnings)


def test_a_change_that_alters_other_answers_is_warned_of(loaded: LoadedModel) -> None:
    found = calibrate(loaded, *sources(24), replace(OPTIONS, layer=1, strength=30.0))
    assert found.reported.changed.kept < 0.5
    assert any("retain prompts are answered otherwise than before (cosine" in each for each in found.warnings)


def room(loaded: LoadedModel, tokens: int) -> Job:
    return prepared(loaded, *sources(24), replace(OPTIONS, asked_tokens=tokens))


def test_only_prompts_that_leave_room_are_answered(loaded: LoadedModel) -> None:
    limit, longest = 256, max(len(ids) for ids in room(loaded, 1).reference)
    assert max(len(ids) for ids in room(loaded, limit - longest + 1).asked_reference()) < longest
    with pytest.raises(CalibrationError, match="no answer of 256 tokens fits the model's context of 256 behind any"):
        room(loaded, limit).asked_reference()


@pytest.mark.parametrize("wrong", [{"candidates": 0}, {"asked": 1}, {"asked_tokens": 0}])
def test_options_of_the_choice_out_of_range(wrong: dict[str, int]) -> None:
    with pytest.raises(CalibrationError, match=f"got `{next(iter(wrong))}`"):
        LunarOptions(**wrong)  # type: ignore[arg-type]


def test_candidates_beside_a_layer_are_refused() -> None:
    assert LunarOptions(layer=1).layer == 1
    with pytest.raises(CalibrationError, match="got `layer` 1 and `candidates` 3, wanted one of the two"):
        LunarOptions(layer=1, candidates=3)


def overflowing() -> LoadedModel:
    """In float16, whose last block gives so much that a hundred times a way behind it is no number there."""
    wide = tiny_loaded(max_position_embeddings=256)
    wide.model.model.layers[2].mlp.down_proj.weight.data *= 5e3
    wide.model.half()
    return wide


def test_a_change_under_which_the_model_is_not_finite_is_left_out() -> None:
    """Its tokens are made up: what is said under it says nothing."""
    options = replace(OPTIONS, strength=100.0)
    found = calibrate(overflowing(), *sources(24), options)
    assert [each.layer for each in found.candidates] == [0, 1]
    noted = "left out, since the model is not finite in this dtype under its change: layer 2"
    assert noted in found.record.notes
    assert not any("left out" in note for note in calibrate(overflowing(), *sources(24), OPTIONS).record.notes)
    with pytest.raises(CalibrationError, match=r"under the change of layer 2: lower `strength` \(got 100\), name"):
        calibrate(overflowing(), *sources(24), replace(options, layer=2))


def test_all_candidates_are_tried_where_memory_has_room_for_one_layers_sums(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wide model's are gathered pass after pass, with the same result."""
    options = replace(OPTIONS, asked=2, asked_tokens=2)
    whole = calibrate(loaded, *sources(24), options)
    monkeypatch.setattr("guards.methods.lunar.calibrate.SUM_BYTES", 8 * loaded.width(Site.KEY) ** 2)
    parts = calibrate(loaded, *sources(24), options)
    assert [each.layer for each in parts.candidates] == [0, 1, 2]
    assert LUNAR.report(parts) == LUNAR.report(whole)
    assert all(torch.equal(one.w_F, other.w_F) for one, other in zip(parts.candidates, whole.candidates, strict=True))
    said = "sums of 3 layers took 3 passes over the fit part"
    assert (said in parts.record.notes, said in whole.record.notes) == (True, False)


@pytest.mark.parametrize("sum_bytes", [1, 4 << 30])
def test_all_that_is_run_is_counted(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch, sum_bytes: int) -> None:
    counted: list[int] = []

    @contextmanager
    def bar(total: int, _: bool) -> Iterator[Advance]:
        counted.append(-total)
        yield lambda tokens, _: counted.append(tokens)

    monkeypatch.setattr("guards.methods.lunar.calibrate.progress_bar", bar)
    monkeypatch.setattr("guards.methods.lunar.calibrate.SUM_BYTES", sum_bytes)
    calibrate(loaded, *sources(24), replace(OPTIONS, asked=2, asked_tokens=2))
    assert counted[0] < 0 == sum(counted)
