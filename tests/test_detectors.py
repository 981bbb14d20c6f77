"""Detectors under test: fitted on train texts only, measured once, kept where a run is stopped, and what is counted."""

import argparse
import json
from pathlib import Path

import pytest
import torch

from benchmarks import robustness, transfer
from benchmarks.detectors import run as running
from benchmarks.detectors.keys import CachedKeys
from benchmarks.detectors.plans import FRAMES, ONE_FRAME, RETAINED, SOURCES, Fitting, make_fitting
from benchmarks.detectors.ratios import Detector, ratios
from benchmarks.detectors.registry import ENTRIES
from benchmarks.detectors.rows import ALL, FITTED, HELD_OUT, Measured, rows_of
from benchmarks.detectors.run import Wanted, encode, fit_all, parse, run
from benchmarks.detectors.tables import print_tables
from benchmarks.detectors.work import Work
from benchmarks.prompts.formats import BARE, CHAT, INSTRUCTED, QA
from benchmarks.prompts.items import Format, Item
from benchmarks.prompts.materials import MATERIALS, SKILLS
from benchmarks.prompts.sets import PromptSet
from benchmarks.prompts.splits import Split, normal_form
from guards.calibration.curves import log_auroc
from guards.calibration.sources import Source
from guards.inside.transformers.loading import LoadedModel
from tests.guards.tiny import sums, tiny_loaded, words
from tests.test_prompts import write_data

INDEX = {"gsm8k": sums, "mmlu-other": words}


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    torch.manual_seed(0)
    return tiny_loaded()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


def made_set(name: str, count: int, seed: int = 0) -> PromptSet:
    """Sums in the place of GSM8K, words in that of MMLU."""
    texts = INDEX[name](count, seed)
    return PromptSet(MATERIALS[name], BARE, Split.TEST, tuple(map(Item, texts)), texts)


def test_prompts_beyond_the_context_are_left_out(loaded: LoadedModel) -> None:
    long = PromptSet(MATERIALS["gsm8k"], BARE, Split.TEST, (Item("a"), Item("b")), ("a" * 65, "b"))
    asked = encode(loaded, long)
    assert (len(asked.examples), asked.left_out) == (1, 1)


@pytest.mark.parametrize("name", ["paper", "cube"])
def test_detectors_catch_new_sums(name: str, loaded: LoadedModel) -> None:
    forget, retain = (Source(made.__name__, made(450)) for made in INDEX.values())
    found = ENTRIES[name].calibrate(CachedKeys(loaded), Fitting((forget,), (retain,), ("bare",)))
    fired = {}
    for material in INDEX:
        examples = encode(loaded, made_set(material, 100, seed=9)).examples
        ratio_E = ratios(loaded, {name: Detector(found.method, found.guard)}, examples)[name]
        fired[material] = float((ratio_E <= 1).float().mean())
    assert fired["gsm8k"] > 0.5
    assert fired["mmlu-other"] < fired["gsm8k"] / 2


def options(data: Path, folder: Path, *more: str) -> argparse.Namespace:
    """Those of the command."""
    folder.mkdir(exist_ok=True)
    return parse("", ["--model", str(folder), "--data", str(data), "--work", str(folder / "work"), *more])


def test_a_detector_that_cannot_be_fitted_is_named_once_and_for_all(
    loaded: LoadedModel, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = options(data, tmp_path, "--detectors", "paper", "--skills", "code", "--fit-limit", "2")
    work = Work(args.work, loaded)
    fitted, refused = fit_all(loaded, work, args)
    assert fitted == {}
    assert "wanted at least" in refused["paper code"]
    monkeypatch.setattr(CachedKeys, "stream", None)
    assert fit_all(loaded, work, args) == ({}, refused)


SETS = [Wanted(name, form, 8) for name in ("gsm8k", "mmlu-other") for form in (CHAT, QA, BARE)]


class StoppedError(Exception):
    """Stands for whatever ends a run."""


def test_a_stopped_run_goes_on_where_it_was(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny_loaded(max_position_embeddings=256)
    monkeypatch.setattr(running, "load_model", lambda _: model)
    texts = Fitting((Source("sums", sums(200)),), (Source("words", words(200)),), ("chat",))
    monkeypatch.setattr(running, "make_fitting", lambda *_, **__: texts)
    args = options(data, tmp_path, "--limit", "8", "--detectors", "paper", "--skills", "mathematics")
    read, whole = [], ratios

    def counted(model: LoadedModel, *rest: object) -> object:
        read.append(len(rest))
        if len(read) == 3:
            raise StoppedError
        return whole(model, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(running, "ratios", counted)
    with pytest.raises(StoppedError):
        run("transfer", args, lambda _: SETS)
    capsys.readouterr()
    run("transfer", args, lambda _: SETS)
    assert len(read) == 3 + len(SETS) - 2, "two sets were kept"
    first = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {row["test"] for row in first["rows"] if row["role"] == "forget"} == {"gsm8k/chat", "gsm8k/qa", "gsm8k/bare"}
    monkeypatch.setattr(CachedKeys, "stream", None)
    run("transfer", args, lambda _: SETS)
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == first
    assert len(read) == 3 + len(SETS) - 2


def test_other_prompts_or_texts_are_not_taken_for_kept_ones(loaded: LoadedModel, tmp_path: Path) -> None:
    work = Work(tmp_path, loaded)
    one, other = (Fitting((Source("s", sums(count)),), (Source("w", words(5)),), ("chat",)) for count in (5, 6))
    assert work.place("paper", "mathematics", one) != work.place("paper", "mathematics", other)
    other_model = tiny_loaded(seed=4, chat_template=None)
    assert Work(tmp_path, other_model).folder != work.folder
    found = ENTRIES["paper"].calibrate(loaded, Fitting((Source("s", sums(60)),), (Source("w", words(60)),), ("bare",)))
    place = work.place("paper", "mathematics", one)
    work.keep(place, "mathematics", lambda: found)
    fitted = work.fitted(place)
    assert fitted.detector.method == found.method
    work.keep_ratios(fitted, [(1, 2)], torch.tensor([0.1]))
    kept = work.ratios(fitted, [(1, 2)])
    assert kept is not None
    assert torch.equal(kept, torch.tensor([0.1]))
    assert work.ratios(fitted, [(1, 3)]) is None


def test_a_model_without_a_chat_template_is_refused(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "load_model", lambda _: tiny_loaded(chat_template=None))
    with pytest.raises(SystemExit, match="without a chat template"):
        run("transfer", options(data, tmp_path), lambda _: SETS)


def test_a_missing_model_and_a_limit_of_nothing_are_refused(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in (["--model", str(tmp_path / "none")], ["--model", str(tmp_path), "--limit", "0"]):
        with pytest.raises(SystemExit):
            parse("", arguments)
    said = capsys.readouterr().err
    assert "no such folder" in said
    assert "got 0 as --limit" in said


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
    assert FRAMES.held_out("mathematics", "gsm8k", "qa") == ()
    assert ONE_FRAME.held_out("mathematics", "gsm8k", "qa") == ("format",)
    assert SOURCES.held_out("mathematics", "mmlu-college", "few-shot-2") == ("source", "format")
    assert SOURCES.held_out("code", "mbpp-fix", "bare") == ("source",)
    assert SOURCES.fitted_on("code") == "mbpp, mbpp-signature, mbpp-partial in chat, bare, qa"


def measured(name: str, form: Format, scores: list[float]) -> Measured:
    return Measured(MATERIALS[name], form, torch.tensor(scores))


def test_recall_and_false_abstention_are_of_the_same_format() -> None:
    rows = rows_of(
        "mathematics",
        ONE_FRAME,
        [
            measured("gsm8k", CHAT, [0.5] * 9 + [1.5]),
            measured("gsm8k", QA, [0.5, 3.0]),
            measured("mmlu-other", CHAT, [2.0] * 100),
            measured("mmlu-history", QA, [0.5, 2.0]),
            measured("mmlu-quantitative", QA, [0.5, 2.0]),
        ],
    )
    by_test = {row["test"]: row for row in rows}
    own, held = by_test["gsm8k/chat"], by_test["gsm8k/qa"]
    assert (own["recall"], own["false_abstention"], own["auroc"], own["met"]) == (0.9, 0.0, 1.0, True)
    assert (own["held_out"], held["held_out"]) == ([], ["format"])
    assert (held["recall"], held["false_abstention"], held["auroc"], held["met"]) == (0.5, 0.5, 0.375, False)
    assert held["worst"] == "mmlu-history/qa"
    assert own["recall_interval"][0] < 0.9 < own["recall_interval"][1]
    assert by_test["mmlu-other"]["false_abstention"] == 0.0
    assert by_test["mmlu-other"]["recall"] is None
    assert by_test["mmlu-history"]["auroc"] == pytest.approx((9 * 0.5 + 9 + 1) / 20)
    assert by_test["mmlu-quantitative"]["role"] == "arguable"
    assert by_test["mmlu-quantitative"]["fires"] == 0.5
    assert "false_abstention" not in by_test["mmlu-quantitative"]
    json.dumps(rows)


def test_low_rates_are_against_all_that_is_retained_in_any_format() -> None:
    sets = [
        measured("gsm8k", CHAT, [0.5, 0.9, 2.5]),
        measured("gsm8k", QA, [0.6]),
        measured("mmlu-other", CHAT, [2.0] * 400),
        measured("mmlu-other", BARE, [0.8] + [3.0] * 599),
        measured("mmlu-quantitative", CHAT, [0.1]),
    ]
    by_test = {row["test"]: row for row in rows_of("mathematics", ONE_FRAME, sets)}
    own, retained = torch.tensor([0.5, 0.9, 2.5]), torch.cat([sets[2].ratio_E, sets[3].ratio_E])
    assert by_test["gsm8k/chat"]["log_auroc"] == log_auroc(own, retained)
    assert by_test["gsm8k/chat"]["recall_at"] == pytest.approx({"0.001": 2 / 3, "0.005": 2 / 3, "0.01": 2 / 3})
    assert by_test["gsm8k/chat"]["false_abstention"] == 0
    pools = {label: by_test[label] for label in (FITTED, HELD_OUT, ALL)}
    assert [pool["examples"] for pool in pools.values()] == [3, 1, 4]
    assert {pool["role"] for pool in pools.values()} == {"pool"}
    assert pools[ALL]["false_abstention"] == pytest.approx(0.001)
    assert pools[ALL]["retain_examples"] == 1000
    few = rows_of("mathematics", ONE_FRAME, [sets[0], sets[2]])[0]
    assert few["log_auroc"] is None
    assert few["recall_at"] == {"0.001": None, "0.005": pytest.approx(2 / 3), "0.01": pytest.approx(2 / 3)}


def test_a_set_with_nothing_retained_in_its_format_meets_no_goal() -> None:
    row = rows_of("language-en", ONE_FRAME, [measured("xquad-en", INSTRUCTED["en"], [0.5])])[0]
    assert (row["log_auroc"], row["recall_at"]["0.01"]) == (None, None)
    assert (row["recall"], row["false_abstention"], row["met"]) == (1.0, None, None)


def test_tables_show_each_set_once_with_every_detector(capsys: pytest.CaptureFixture[str]) -> None:
    sets = [
        measured("gsm8k", CHAT, [0.5, 0.5]),
        measured("gsm8k", QA, [0.5, 3.0]),
        measured("mmlu-other", CHAT, [2.0]),
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
    assert "0.50 / - / - f" in shown  # nothing retained is measured in the frame qa, in which paper was not fitted
    assert "1 of 1" in shown
    assert "paper code: refused: too few" in shown


@pytest.mark.parametrize(
    "wanted", [made.sets(skills) for made in (transfer, robustness) for skills in (SKILLS, SKILLS[:2])]
)
def test_all_sets_are_measured_once_and_exist(wanted: list[Wanted]) -> None:
    names = [(one.material, one.format.name) for one in wanted]
    assert len(set(names)) == len(names)
    assert {material for material, _ in names} <= set(MATERIALS)


def test_every_skill_is_asked_in_other_sources_with_something_retained() -> None:
    every = [measured(one.material, one.format, [0.5, 2.0]) for one in transfer.sets(SKILLS)]
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
