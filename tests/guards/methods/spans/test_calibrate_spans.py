"""Calibrating over spans on a tiny model: promises, surroundings, answers, warnings, canaries and bytes."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from guards.artifact.store import read_artifact
from guards.calibration.activations import TokenIds
from guards.calibration.corpus import Share
from guards.calibration.having import candidate_layers
from guards.calibration.sources import Source
from guards.calibration.surroundings import Kind
from guards.contract.spans import MessageMean, Rise
from guards.contract.turns import Turns
from guards.core.quantiles import LEVELS, place
from guards.core.verdict import Scope
from guards.errors import CalibrationError
from guards.inside.transformers.loading import LoadedModel
from guards.methods.registry import SPANS, load_guard, method_of
from guards.methods.spans import examples
from guards.methods.spans.calibrate import SpanCalibration, calibrate
from guards.methods.spans.choice import Accumulation, judgements, needed
from guards.methods.spans.directions import RECIPE, layer_sets
from guards.methods.spans.guard import SpanGuard
from guards.methods.spans.options import SpanOptions
from guards.methods.spans.passes import kept_windows, windows_of
from guards.methods.spans.recipe import KAPPAS, WEIGHTS
from tests.guards.tiny import sources, sums, tiny_loaded, words
from tests.guards.verified import disagreements

TURNED = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'assistant' %}<eos>A: "
    "{{ message['content'] }}<eos>{% else %}Q: {{ message['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<eos>A: {% endif %}"
)
CAP, RECALL = 0.2, 0.9
OPTIONS = SpanOptions(recall=RECALL, max_false_abstention=CAP, material="none", longest=64, answers=4)


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return tiny_loaded(chat_template=TURNED, max_position_embeddings=1024)


@pytest.fixture(scope="module")
def calibration(loaded: LoadedModel) -> SpanCalibration:
    return calibrate(loaded, *sources(160), OPTIONS)


@pytest.mark.parametrize(
    ("count", "layers"), [(1, (0,)), (2, (0, 1)), (3, (0, 1, 2)), (6, (1, 2, 3, 4)), (30, (6, 10, 13, 17, 20, 24))]
)
def test_layers_looked_at_are_of_the_middle(count: int, layers: tuple[int, ...]) -> None:
    assert candidate_layers(count) == layers


def test_sets_of_layers() -> None:
    assert layer_sets((6, 10, 14, 18)) == [(6, 10), (10, 14), (14, 18), (6, 10, 14), (10, 14, 18)]
    assert layer_sets((1, 2)) == [(1, 2)]
    assert layer_sets((3,)) == [(3,)]


def test_it_keeps_its_promises_on_held_out_parts(calibration: SpanCalibration) -> None:
    rows = {row.name: row for row in calibration.rows}
    for frame in ("chat", "bare", "Q: {text}\nA:"):
        recall, false = rows[frame].recall, rows[frame].false_abstention
        assert recall is not None
        assert false is not None
        assert recall.high >= RECALL
        assert false.low <= CAP
    assert rows["chat"].recall is not None
    assert rows["chat"].recall.total == 40, "a quarter of 160"
    record = calibration.record
    assert record.frames == ("chat", "bare", "Q: {text}\nA:")
    assert record.recall is not None
    assert record.recall.rate == min(rows[f].recall.rate for f in record.frames)  # type: ignore[union-attr]


def test_the_table_has_the_standard_rows(calibration: SpanCalibration) -> None:
    """Beside the frames, whatever the sources are: no report may be blind to what stands around a text."""
    shown = {row.name: (row.recall is not None, row.false_abstention is not None) for row in calibration.rows}
    assert shown[Kind.UPPER] == shown[Kind.TYPOS] == (True, True)
    assert shown[Kind.AMID] == shown[Kind.AFTER] == shown[Kind.LATER] == (True, False)
    assert shown[Kind.LONG] == shown[Kind.WORKED] == (True, True)
    assert shown[Kind.ANSWERS] == (True, True)
    assert shown["sums"] == (True, False)
    assert shown["words"] == (False, True)
    table = SPANS.table(calibration)
    frames = ("chat", "bare", "Q: {text}\nA:")
    assert [row[0] for row in table.rows] == [repr(name) if name in frames else name for name in shown]


def test_numbers_at_the_edge_of_what_was_tried_are_told(calibration: SpanCalibration) -> None:
    numbers = calibration.chosen.accumulation.numbers
    edges = {"kappa": (min(KAPPAS), max(KAPPAS)), "weight": (min(WEIGHTS), max(WEIGHTS))}
    for name, tried in edges.items():
        said = any(f"prompts: {name} {numbers[name]:g} is the" in note for note in calibration.record.notes)
        assert said is (numbers[name] in tried)


def test_answers_have_taus_of_their_own(calibration: SpanCalibration) -> None:
    labels = [each.label for each in calibration.judgements]
    assert labels == ["prompt, span", "prompt, mean", "answer, span", "answer, mean"]
    assert isinstance(calibration.guard, SpanGuard)
    assert calibration.guard.judgements == calibration.judgements


def test_answers_too_few_to_show_the_cap_are_warned_of(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many prompts there are: few are answered."""

    def said() -> list[str]:
        capped = calibrate(loaded, *sources(160), replace(OPTIONS, max_false_abstention=0.05))
        return [warning for warning in capped.warnings if "cannot show" in warning]

    assert said() == [], "positive control"
    monkeypatch.setattr(examples, "ANSWERED", 8)
    monkeypatch.setattr(examples, "ANSWERED_OF_A_SOURCE", 4)
    (warning,) = said()
    assert "answers to retain examples for the threshold cannot show a false-abstention rate of 0.05" in warning


def test_a_model_that_answers_one_side_only_has_answers_judged_by_nothing_of_their_own(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, plus = LoadedModel.write, loaded.codec.tokenizer.convert_tokens_to_ids("+")

    def silent(model: LoadedModel, prompts: Sequence[TokenIds], *rest: Any) -> list[TokenIds]:
        answers = write(model, prompts, *rest)
        return [answer if plus in ids else () for ids, answer in zip(prompts, answers, strict=True)]

    monkeypatch.setattr(LoadedModel, "write", silent)
    found = calibrate(loaded, *sources(80), OPTIONS)
    assert [each.label for each in found.judgements] == ["prompt, span", "prompt, mean"]
    assert Kind.ANSWERS not in {row.name for row in found.rows}
    assert any("answers are not judged" in warning for warning in found.warnings)


@pytest.mark.parametrize("change", [{"scope": Scope.PROMPT}, {"answers": 0}])
def test_answers_that_are_not_judged_are_not_written(
    loaded: LoadedModel, change: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(*_: object) -> list[TokenIds]:
        raise AssertionError("the model was asked to answer")

    monkeypatch.setattr(LoadedModel, "write", write)
    prompts_only = calibrate(loaded, *sources(80), replace(OPTIONS, **change))  # type: ignore[arg-type]
    assert [each.label for each in prompts_only.judgements] == ["prompt, span", "prompt, mean"]
    said = any("answers are not judged" in warning for warning in prompts_only.warnings)
    assert said is ("answers" in change), "a guard whose scope leaves answers out says nothing new"
    with pytest.raises(AssertionError, match="was asked to answer"):
        calibrate(loaded, *sources(80), OPTIONS)


def test_the_artifact_verifies_and_its_bytes_are_the_inputs_alone(
    loaded: LoadedModel, calibration: SpanCalibration, tmp_path: Path
) -> None:
    digest = calibration.save(tmp_path / "a", "sums")
    artifact = read_artifact(tmp_path / "a")
    assert method_of(artifact) is SPANS
    assert disagreements(loaded, SPANS, calibration.guard, calibration.canaries) == []
    guard = load_guard(artifact)
    assert isinstance(guard, SpanGuard)
    assert guard.layers == calibration.chosen.layers
    again = calibrate(loaded, *sources(160), OPTIONS)
    assert again.save(tmp_path / "b", "sums") == digest


def test_how_common_scores_of_prompts_are_is_recorded(calibration: SpanCalibration) -> None:
    quantiles = calibration.record.quantiles
    assert quantiles is not None
    assert quantiles.examples > 100
    at_tau, _ = place(quantiles.over_tau, quantiles.examples, 1.0)
    assert at_tau <= 2 * OPTIONS.max_false_abstention, "so few of these texts fire"
    assert quantiles.over_tau[LEVELS.index(0.5)] > 1
    assert len(set(quantiles.over_tau)) > 10, "scores of texts without the skill differ"


def test_every_side_has_the_word_in_the_fit(calibration: SpanCalibration) -> None:
    assert set(calibration.windows) == {"forget", "retain"}
    assert all(count > 100 for count in calibration.windows.values())


def test_sources_that_cannot_be_told_apart_are_refused(loaded: LoadedModel) -> None:
    alike = words(480)
    with pytest.raises(CalibrationError, match=r"recall .* in frame .* wanted at least 0\.5; nothing was written"):
        calibrate(loaded, [Source("a", alike[:240])], [Source("b", alike[240:])], OPTIONS)


def test_a_retain_source_that_needs_the_skill_decides_and_is_named(loaded: LoadedModel) -> None:
    hidden = sums(260, seed=9)
    forget = [Source("sums", hidden[:180])]
    retain = [Source("words", words(2400)), Source("mixed", (*words(10, 5), *hidden[180:]))]
    with pytest.raises(CalibrationError, match=r"nothing was written \(decided by .*mixed"):
        calibrate(loaded, forget, retain, replace(OPTIONS, max_false_abstention=0.2, frames=("chat",), longest=8))


def turns(counted: list[bool], opens: int | None = None) -> Turns:
    """One side's; a message opens with a token."""
    counted_T = torch.tensor(counted)
    opens_T = torch.zeros_like(counted_T)
    if opens is not None:
        opens_T[opens] = True
    return Turns(counted_T, opens_T, opens_T, torch.zeros_like(counted_T))


def test_windows_are_of_the_newest_messages_text() -> None:
    assert windows_of(turns([False] + [True] * 5)).tolist() == [-1, 0, 0, 0, 0, 0]
    long = windows_of(turns([False] + [True] * 40)).tolist()
    assert long[0] == -1
    assert sorted(long[1:]) == long[1:]
    assert [long.count(i) for i in range(3)] == [20, 20, 0], "40 tokens are two windows and a half: two"
    assert windows_of(turns([True] * 6, opens=2)).tolist() == [-1, -1, -1, 0, 0, 0]
    assert windows_of(turns([True] * 6), own=(1, 3)).tolist() == [-1, 0, 0, -1, -1, -1]
    assert windows_of(turns([False] * 3)).tolist() == [-1, -1, -1]


def test_a_long_source_takes_no_windows_from_small_ones() -> None:
    names = ["long"] * 50 + ["short"] * 4 + ["long"] * 50 + ["middle"] * 20
    kept = [names[i] for i in kept_windows(names, 40).tolist()]
    assert {name: kept.count(name) for name in set(names)} == {"short": 4, "middle": 18, "long": 18}
    assert kept_windows(names, 200).tolist() == list(range(len(names)))
    assert kept_windows([], 200).dtype == kept_windows(names, 40).dtype, (
        "no window at all is the fitter's error, in words"
    )


def test_tau_leaves_room_on_both_sides_and_the_cap_wins() -> None:
    of = Accumulation((Rise(0.5, False), MessageMean(3, False)), (4.0, 0.2), "a", {"all": 1.0}, 4.0, 99)
    assert [needed(each) for each in judgements(of, "middle")] == pytest.approx([8.0, 0.4])
    assert [needed(each) for each in judgements(of, "tight")] == pytest.approx([16.0, 0.8])
    assert [needed(each) for each in judgements(replace(of, margin=0.5), "tight")] == pytest.approx([4.0, 0.2])
    assert needed(judgements(replace(of, margin=100.0), "middle")[1]) == pytest.approx(0.9), "no mean needs more"


def test_a_text_stays_in_its_share(loaded: LoadedModel) -> None:
    """Whatever is put around it: what is reported was in no surrounding fitted or chosen on."""
    from guards.methods.spans.calibrate import prepared
    from guards.methods.spans.examples import all_examples

    job = prepared(loaded, *sources(40), OPTIONS, RECIPE)
    texts = {
        share: {job.corpora[side].texts[i] for side in job.corpora for i in job.parts[side][share]} for share in Share
    }
    assert not texts[Share.FIT] & texts[Share.REPORT]
    beside = [each for each in all_examples(job) if each.row in (Kind.AMID, Kind.AFTER)]
    assert beside
    for example in beside:
        assert example.own is not None
        own = loaded.codec.tokenizer.decode(example.ids[slice(*example.own)]).replace(" ", "")
        assert own in {text.replace(" ", "") for text in texts[example.share]}
