"""Detectors under test: what they are shown, that they are fitted on train texts only, and what is counted."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks import robustness, transfer
from benchmarks.detectors.base import Calibrate, KeyBatch, Verdicts
from benchmarks.detectors.cubes import ksd, paper
from benchmarks.detectors.measure import encode, judge
from benchmarks.detectors.memory import RememberingModel
from benchmarks.detectors.plans import FRAMES, ONE_FRAME, RETAINED, SOURCES, Fitting, Plan, make_fitting
from benchmarks.detectors.registry import ENTRIES
from benchmarks.detectors.rows import Measured, rows_of
from benchmarks.detectors.run import Wanted, fit_all, measure_all
from benchmarks.detectors.tables import print_tables
from benchmarks.prompts.formats import BARE, CHAT, FEW_SHOT, INSTRUCTED, QA
from benchmarks.prompts.items import Format, Item, Role
from benchmarks.prompts.materials import MATERIALS, SKILLS
from benchmarks.prompts.sets import PromptSet
from benchmarks.real_text.splits import Split, normal_form
from guards.capture import TokenIds, Tokens
from guards.errors import CalibrationError
from guards.loading import LoadedModel
from guards.sites import Site
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


def fitting(plan: Plan) -> Fitting:
    return Fitting(
        "mathematics",
        plan,
        tuple(made_set("gsm8k", form, 300) for form in plan.formats),
        tuple(made_set("mmlu-other", form, 450) for form in plan.formats),
    )


@dataclass(frozen=True)
class Echo:
    """Keeps sums of the last and mean keys; fires on every second prompt."""

    layers: tuple[int, ...] = (0, 2)
    broken: bool = False

    def measure(self, keys: KeyBatch) -> Tensor:
        return torch.stack([keys.last_keys.sum(1), keys.mean_keys.sum(1)], dim=1)

    def decide(self, kept_by_layer: Mapping[int, Tensor]) -> Verdicts:
        kept = torch.cat([kept_by_layer[layer] for layer in self.layers], dim=1)
        return Verdicts(kept[:, 0] > 0, kept.sum(1) * (torch.nan if self.broken else 1))


def test_every_detector_sees_whole_prompts_in_their_order(loaded: LoadedModel) -> None:
    examples = encode(loaded, made_set("gsm8k", QA, 40))
    batched = judge(loaded, {"echo": Echo()}, examples)["echo"]
    for index in (0, 17, 39):
        alone = judge(loaded, {"echo": Echo()}, [examples[index]])["echo"]
        assert torch.allclose(batched.score_E[index], alone.score_E[0], atol=1e-4)
    seen: list[Tensor] = []
    loaded.stream(
        Site.KEY, (2,), examples[:1], lambda _, key_TF, __: seen.append(key_TF), tokens=Tokens.ALL, batch_tokens=None
    )
    (key_TF,) = seen
    keys = KeyBatch(2, key_TF, torch.zeros(len(key_TF), dtype=torch.long))
    assert torch.equal(keys.last_keys[0], key_TF[-1])
    assert torch.allclose(keys.mean_keys[0], key_TF.mean(0), atol=1e-5)


def test_a_score_that_is_not_finite_is_an_error(loaded: LoadedModel) -> None:
    examples = encode(loaded, made_set("gsm8k", QA, 4))
    with pytest.raises(CalibrationError, match="not finite"):
        judge(loaded, {"echo": Echo(broken=True)}, examples)


def test_prompts_beyond_the_context_are_left_out(loaded: LoadedModel) -> None:
    long = PromptSet(MATERIALS["gsm8k"], BARE, Split.TEST, (Item("a"), Item("b")), ("a" * 65, "b"))
    assert len(encode(loaded, long)) == 1


@pytest.mark.parametrize("calibrate", [paper, ksd])
def test_cubes_catch_new_sums_in_their_frame(calibrate: Calibrate, loaded: LoadedModel) -> None:
    detector = calibrate(RememberingModel(loaded), fitting(ONE_FRAME))
    fired = {}
    for name in INDEX:
        verdicts = judge(loaded, {"cube": detector}, encode(loaded, made_set(name, QA, 100, seed=9)))["cube"]
        assert torch.equal(verdicts.fires_E, verdicts.score_E <= 1)
        fired[name] = float(verdicts.fires_E.float().mean())
    assert fired["gsm8k"] > 0.8
    assert fired["mmlu-other"] < 0.5


def test_ksd_refuses_a_format_that_is_no_frame(loaded: LoadedModel) -> None:
    with pytest.raises(ValueError, match="no frame"):
        ksd(loaded, Fitting("mathematics", Plan("shots", {}, (FEW_SHOT,)), (), ()))


def test_remembered_keys_are_those_of_the_model_and_run_once(loaded: LoadedModel) -> None:
    examples = encode(loaded, made_set("gsm8k", QA, 30))
    model, runs = RememberingModel(loaded), list[int]()

    def keys(of: RememberingModel | LoadedModel, asked: list[TokenIds], layers: tuple[int, ...]) -> dict[int, Tensor]:
        found = {layer: torch.zeros(len(asked), loaded.identity.d_ff) for layer in layers}

        def consume(layer: int, key_EF: Tensor, example_E: Tensor) -> None:
            found[layer][example_E] = key_EF

        of.stream(
            Site.KEY, layers, asked, consume, tokens=Tokens.LAST, batch_tokens=None, advance=lambda n: runs.append(n)
        )
        return found

    whole = keys(loaded, examples, (0, 2))
    runs.clear()
    assert keys(model, examples[:20], (0, 2)).keys() == whole.keys()
    assert sum(runs) == sum(map(len, examples[:20]))
    runs.clear()
    again = keys(model, [*examples[::-1], examples[0]], (2,))[2]
    assert sum(runs) == sum(map(len, examples[20:]))
    assert torch.allclose(again[:-1], whole[2].flip(0), atol=1e-4)
    assert torch.equal(again[-1], again[-2])


def test_a_detector_that_cannot_be_fitted_is_named_and_measures_nothing(loaded: LoadedModel, tmp_path: Path) -> None:
    fitted, refused = fit_all(loaded, tmp_path, ["paper"], ["code"], 0)
    assert fitted == {}
    assert "no such file" in refused["paper code"]
    assert measure_all(loaded, tmp_path, fitted, transfer.sets(), 0) == ({}, {})


@pytest.mark.real
def test_plans_hold_train_texts_that_are_on_one_side_only(shared_data: Path) -> None:
    for skill in ("mathematics", "code"):
        made = make_fitting(shared_data, SOURCES, skill)
        assert {one.split for one in (*made.forget, *made.retain)} == {Split.TRAIN}
        assert {one.role(skill) for one in made.forget} == {Role.FORGET}
        assert {one.role(skill) for one in made.retain} == {Role.RETAIN}
        forgotten, retained = (
            {normal_form(item.text) for one in side for item in one.items} for side in (made.forget, made.retain)
        )
        assert not forgotten & retained


def test_what_is_held_out() -> None:
    assert FRAMES.held_out("mathematics", "gsm8k", "chat") == ()
    assert ONE_FRAME.held_out("mathematics", "gsm8k", "chat") == ("format",)
    assert SOURCES.held_out("mathematics", "mmlu-college", "few-shot-2") == ("source", "format")
    assert SOURCES.held_out("code", "mbpp-fix", "bare") == ("source",)
    assert SOURCES.fitted_on("code") == "mbpp, mbpp-signature, mbpp-partial in qa, chat, bare"


def measured(name: str, form: Format, scores: list[float]) -> Measured:
    score_E = torch.tensor(scores)
    return Measured(MATERIALS[name], form, Verdicts(score_E <= 1, score_E))


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
        for name in ("paper", "ksd")
        for row in rows_of("mathematics", ENTRIES[name].plan, sets)
    ]
    print_tables(rows, ["paper", "ksd"], {"paper code": "too few"})
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
    for entry in ENTRIES.values():
        for skill in entry.plan.forget:
            rows = rows_of(skill, entry.plan, every)
            own = [row for row in rows if row["role"] == "forget"]
            assert {tuple(row["held_out"]) for row in own} >= {(), ("format",)}
            assert any("source" in row["held_out"] for row in own)
            assert all(row["met"] is not None for row in own if not row["format"].startswith(("instruction", "solve")))
    assert set(RETAINED) <= set(MATERIALS)
    assert set(ONE_FRAME.forget) == set(FRAMES.forget) == set(SKILLS)
