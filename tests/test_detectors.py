"""Detectors under test: what they are shown, that they are fitted on train texts only, and what is counted."""

import json
from pathlib import Path

import pytest
import torch
from benchmarks.real_text.keys import CachedKeys
from benchmarks.real_text.ratios import ratios

from benchmarks import robustness, transfer
from benchmarks.detectors.plans import FRAMES, ONE_FRAME, RETAINED, SOURCES, make_fitting
from benchmarks.detectors.registry import ENTRIES
from benchmarks.detectors.rows import Measured, rows_of
from benchmarks.detectors.run import Wanted, encode, fit_all
from benchmarks.detectors.tables import print_tables
from benchmarks.prompts.formats import BARE, CHAT, INSTRUCTED, QA
from benchmarks.prompts.items import Format, Item
from benchmarks.prompts.materials import MATERIALS, SKILLS
from benchmarks.prompts.sets import PromptSet
from benchmarks.prompts.splits import Split, normal_form
from guards.calibration.sources import Source
from guards.inside.transformers.loading import LoadedModel
from tests.guards.tiny import sums, tiny_loaded, words

INDEX = {"gsm8k": sums, "mmlu-other": words}


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    torch.manual_seed(0)
    return tiny_loaded()


def made_set(name: str, form: Format, count: int, seed: int = 0) -> PromptSet:
    """Sums in the place of GSM8K, words in that of MMLU."""
    texts = INDEX[name](count, seed)
    prompts = tuple((form.frame or "").replace("bare", "{text}").replace("{text}", text) for text in texts)
    return PromptSet(MATERIALS[name], form, Split.TRAIN, tuple(map(Item, texts)), prompts)


def test_prompts_beyond_the_context_are_left_out(loaded: LoadedModel) -> None:
    long = PromptSet(MATERIALS["gsm8k"], BARE, Split.TEST, (Item("a"), Item("b")), ("a" * 65, "b"))
    assert len(encode(loaded, long)) == 1


@pytest.mark.parametrize("name", ENTRIES)
def test_detectors_catch_new_sums_in_their_frame(name: str, loaded: LoadedModel) -> None:
    calibrate, form = ENTRIES[name].calibrate, ENTRIES[name].plan.formats[0]
    forget, retain = (Source(made.__name__, made(450)) for made in INDEX.values())
    guard = calibrate(CachedKeys(loaded), [forget], [retain], ENTRIES[name].plan.frames[:1]).guard
    fired = {}
    for material in INDEX:
        examples = encode(loaded, made_set(material, form, 100, seed=9))
        fired[material] = float((ratios(loaded, {name: guard}, examples)[name] <= 1).float().mean())
    assert fired["gsm8k"] > 0.5
    assert fired["mmlu-other"] < fired["gsm8k"] / 2


def test_a_detector_that_cannot_be_fitted_is_named_and_measures_nothing(loaded: LoadedModel, tmp_path: Path) -> None:
    fitted, refused = fit_all(loaded, tmp_path, ["paper"], ["code"], 0)
    assert fitted == {}
    assert "no such file" in refused["paper code"]


@pytest.mark.real
def test_plans_hold_train_texts_that_are_on_one_side_only(shared_data: Path) -> None:
    for skill in ("mathematics", "code"):
        made = make_fitting(shared_data, SOURCES, skill)
        assert made.frames == SOURCES.frames
        forgotten, retained = (
            {normal_form(text) for source in side for text in source.texts} for side in (made.forget, made.retain)
        )
        assert not forgotten & retained
        measured = {
            normal_form(item.text)
            for material in MATERIALS.values()
            for item in material.read(shared_data, Split.TEST)
            if Split.TRAIN in material.splits
        }
        assert not (forgotten | retained) & measured


def test_what_is_held_out() -> None:
    assert FRAMES.held_out("mathematics", "gsm8k", "chat") == ()
    assert ONE_FRAME.held_out("mathematics", "gsm8k", "chat") == ("format",)
    assert SOURCES.held_out("mathematics", "mmlu-college", "few-shot-2") == ("source", "format")
    assert SOURCES.held_out("code", "mbpp-fix", "bare") == ("source",)
    assert SOURCES.fitted_on("code") == "mbpp, mbpp-signature, mbpp-partial in qa, chat, bare"


def measured(name: str, form: Format, scores: list[float]) -> Measured:
    return Measured(MATERIALS[name], form, torch.tensor(scores))


def test_recall_and_false_abstention_are_of_the_same_format() -> None:
    rows = rows_of(
        "mathematics",
        ONE_FRAME,
        [
            measured("gsm8k", QA, [0.5] * 9 + [1.5]),
            measured("gsm8k", CHAT, [0.5, 3.0]),
            measured("mmlu-other", QA, [2.0] * 100),
            measured("mmlu-history", CHAT, [0.5, 2.0]),
            measured("mmlu-quantitative", QA, [0.5, 2.0]),
        ],
    )
    by_test = {row["test"]: row for row in rows}
    own, held = by_test["gsm8k/qa"], by_test["gsm8k/chat"]
    assert (own["recall"], own["false_abstention"], own["auroc"], own["met"]) == (0.9, 0.0, 1.0, True)
    assert (own["held_out"], held["held_out"]) == ([], ["format"])
    assert (held["recall"], held["false_abstention"], held["auroc"], held["met"]) == (0.5, 0.5, 0.375, False)
    assert held["worst"] == "mmlu-history/chat"
    assert own["recall_interval"][0] < 0.9 < own["recall_interval"][1]
    assert by_test["mmlu-other"]["false_abstention"] == 0.0
    assert by_test["mmlu-other"]["recall"] is None
    assert by_test["mmlu-history"]["auroc"] == pytest.approx((9 * 0.5 + 9 + 1) / 20)
    assert by_test["mmlu-quantitative"]["role"] == "arguable"
    assert by_test["mmlu-quantitative"]["fires"] == 0.5
    assert "false_abstention" not in by_test["mmlu-quantitative"]
    json.dumps(rows)


def test_a_set_with_nothing_retained_in_its_format_meets_no_goal() -> None:
    (row,) = rows_of("language-en", ONE_FRAME, [measured("xquad-en", INSTRUCTED["en"], [0.5])])
    assert (row["recall"], row["false_abstention"], row["met"]) == (1.0, None, None)


def test_tables_show_each_set_once_with_every_detector(capsys: pytest.CaptureFixture[str]) -> None:
    sets = [
        measured("gsm8k", QA, [0.5, 0.5]),
        measured("gsm8k", CHAT, [0.5, 3.0]),
        measured("mmlu-other", QA, [2.0]),
    ]
    rows = [
        {"detector": name, **row}
        for name in ("paper", "cube")
        for row in rows_of("mathematics", ENTRIES[name].plan, sets)
    ]
    print_tables(rows, ["paper", "cube"], {"paper code": "too few"})
    shown = capsys.readouterr().out
    assert shown.count("gsm8k/qa") == shown.count("gsm8k/chat") == 1
    assert shown.count("1.00 / 0.000 / 1.000") == 2
    assert "0.50 / - / - f" in shown  # nothing retained is measured in the chat frame, which paper was not fitted in
    assert "1 of 1" in shown
    assert "paper code: refused: too few" in shown


@pytest.mark.parametrize("wanted", [transfer.sets(), robustness.sets()])
def test_all_sets_are_measured_once_and_exist(wanted: list[Wanted]) -> None:
    names = [(one.material, one.format.name) for one in wanted]
    assert len(set(names)) == len(names)
    assert {material for material, _ in names} <= set(MATERIALS)


def test_every_skill_is_asked_in_other_sources_with_something_retained() -> None:
    every = [measured(one.material, one.format, [0.5, 2.0]) for one in transfer.sets()]
    plans = {entry.plan.name: entry.plan for entry in ENTRIES.values()}
    for plan in plans.values():
        for skill in plan.forget:
            rows = rows_of(skill, plan, every)
            own = [row for row in rows if row["role"] == "forget"]
            assert {tuple(row["held_out"]) for row in own} >= {(), ("format",)}
            assert any("source" in row["held_out"] for row in own)
            assert all(row["met"] is not None for row in own if not row["format"].startswith(("instruction", "solve")))
    assert set(RETAINED) <= set(MATERIALS)
    assert set(ONE_FRAME.forget) == set(FRAMES.forget) == set(SKILLS)
