"""All methods on one skill: what is asked and counted, what is folded and trained, and a run that goes on."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.measurements.choosing import choosing_page
from benchmarks.measurements.results import Results
from benchmarks.methods import guards, run
from benchmarks.methods.answers import calculates
from benchmarks.methods.choices import OTHER, SKILLED, Exam, exams, taken
from benchmarks.methods.guards import Candidate, Compared, best, judged
from benchmarks.methods.material import KEPT, OWN, REWORDINGS, Material, examples, material
from benchmarks.methods.perplexity import Said, ratio, said
from benchmarks.methods.relearning import changes, folded, relearned
from benchmarks.methods.run import GIVEN, NONE, Run, answered, columns
from benchmarks.methods.table import as_line, table
from benchmarks.prompts.items import Item
from benchmarks.prompts.paraphrase import numbers_in_words
from benchmarks.prompts.splits import Split, normal_form, rows
from guards.calibration.sources import Source
from guards.calibration.tuning import Example
from guards.contract.guard import Guard
from guards.contract.method import Method
from guards.errors import GuardReadingError
from guards.inside.transformers.loading import LoadedModel, load_model
from guards.methods.cube.options import CubeOptions
from guards.methods.registry import CUBE, LUNAR, SELECTIVE_PRUNING
from guards.methods.rmu.entry import VARIANTS
from guards.methods.selective_pruning.options import PruningOptions
from server.evaluation.folder import RunFolder, key_of
from tests.guards.samples import cubes, lunar, neuron_adjust, pruned, rmu
from tests.guards.tiny import SEED, sums, tiny_loaded, tiny_tokenizer, words
from tests.models import tiny_model, tokens
from tests.test_prompts import write_data

TEXTS = [Example(tuple(tokens(length, seed=length).tolist()), first) for length, first in ((9, 3), (12, 1), (5, 4))]


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("10 x 20 = 200 rare cards", True),
        ("So 36 * 36 * 36 = 1280.", False),
        ("a total of $2 + $3 = $5 spent", True),
        ("140 pills * $1.50 = $210", True),
        ("3 apples + 5 apples = 8 apples", True),
        ("2 + 3 \u00d7 4 = 14", True),
        ("10 / 3 = 3.33", True),
        ("12 \\times 12 = 144", True),
        ("1,000 - 20 = 980", True),
        ("40 + 140 = 160, then 20 / 2 = 10", True),
        ("40 + 140 = 160", False),
        ("$15 - $2 = $11 left", False),
        ("3 + 5 = 8.5", False),
        ("1 / 0 = 0", False),
        ("The answer is 5.", False),
        ("x = 5", False),
        ("", False),
    ],
)
def test_an_answer_calculates_where_a_calculation_in_it_is_right(answer: str, right: bool) -> None:
    assert calculates(answer) is right


def test_numbers_are_spelled_out_where_they_stand_alone() -> None:
    text = "In 1990 Ann paid $12 for 2 of 45 apples, 1/4 of 1,250, 0.5 or 20% at 10:30. Then 3."
    said = "In 1990 Ann paid $12 for two of forty-five apples, 1/4 of 1,250, 0.5 or 20% at 10:30. Then three."
    assert numbers_in_words(text) == said


def test_texts_of_different_use_have_nothing_in_common(tmp_path: Path) -> None:
    of = material(write_data(tmp_path), fitted=4, chosen=3, asked=5)
    uses = [
        {normal_form(text) for text in of.forget.texts} | {normal_form(t) for each in of.retain for t in each.texts},
        {normal_form(item.text) for each in of.chosen_on.values() for item in each},
        {normal_form(item.text) for item in of.relearned},
        {normal_form(item.text) for each in of.asked.values() for item in each},
    ]
    assert all(uses)
    assert sum(map(len, uses)) == len(set().union(*uses))
    answer = of.asked[OWN][0].answer
    assert answer is not None
    assert "The answer is" in answer
    assert "<<" not in answer
    asked = columns(of, kept=True)
    assert set(columns(of, kept=False)) == set(asked) - set(KEPT)
    assert set(asked) == {OWN, *KEPT, *(f"{OWN}.{rule.name}" for rule in REWORDINGS)}
    assert [item.text for item in asked[f"{OWN}.upper-case"]] == [item.text.upper() for item in of.asked[OWN]]
    assert len(answered(of)[run.REWORDED]) == len(of.asked[OWN])


def test_what_is_looked_at_is_the_answer_and_of_a_paragraph_all() -> None:
    codec = tiny_loaded().codec
    asked, paragraph = examples(codec, [Item("1+2=", "3."), Item("abc def.")])
    assert codec.decode(asked.ids[asked.first :]).replace(" ", "") == "3."
    assert asked.ids[: asked.first] == codec.encode_chat([{"role": "user", "content": "1+2="}])
    assert (paragraph.ids, paragraph.first) == (codec.encode_text("abc def."), 1)


@torch.no_grad()
def test_nats_are_those_of_the_model_alone_with_its_text() -> None:
    loaded = tiny_loaded()
    for each, (ids, first) in zip(said(loaded, TEXTS), TEXTS, strict=True):
        log_TV = loaded.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        wanted = -sum(float(log_TV[at - 1, ids[at]]) for at in range(first, len(ids)))
        assert each.nats == pytest.approx(wanted, rel=1e-5)
        assert each.tokens == len(ids) - first


def test_a_ratio_is_of_perplexities_and_lies_in_its_interval() -> None:
    there = [Said(float(n), n) for n in range(1, 9)]
    same = ratio(there, there)
    assert (same["ratio"], same["low"], same["high"], same["texts"]) == (1, 1, 1, 8)
    here = [Said(nats + tokens * (0.5 + 0.1 * (tokens % 2)), tokens) for nats, tokens in there]
    found = ratio(here, there)
    assert 1 < found["low"] < found["ratio"] < found["high"]
    wanted = torch.tensor([one.nats - other.nats for one, other in zip(here, there, strict=True)]).sum() / 36
    assert found["ratio"] == pytest.approx(float(wanted.exp()), abs=1e-4)


FOLDED: list[tuple[Method, Guard]] = [
    (LUNAR, lunar()),
    (VARIANTS["adaptive"], rmu()),
    (SELECTIVE_PRUNING, pruned()),
]


@pytest.mark.parametrize(("method", "guard"), FOLDED)
def test_folded_weights_are_the_guard(method: Method, guard: Guard) -> None:
    loaded = tiny_loaded()
    weights = [each.clone() for each in loaded.model.parameters()]
    plain = said(loaded, TEXTS)
    with loaded.guarded(method, guard):
        branch = said(loaded, TEXTS)
    with folded(loaded, changes(guard)):
        inside = said(loaded, TEXTS)
    assert [each.nats for each in inside] == pytest.approx([each.nats for each in branch], rel=1e-4)
    assert [each.nats for each in inside] != pytest.approx([each.nats for each in plain], rel=1e-3), "it does something"
    assert all(torch.equal(one, other) for one, other in zip(loaded.model.parameters(), weights, strict=True))


@pytest.mark.parametrize("guard", [cubes(), neuron_adjust()])
def test_guards_that_are_no_other_weight_leave_weights_whole(guard: Guard) -> None:
    assert changes(guard) == {}


def test_a_layer_that_is_not_linear_is_said() -> None:
    with pytest.raises(TypeError, match="layer 1: got a Conv1D, wanted a linear layer"):
        folded(tiny_loaded("gpt2"), changes(lunar())).__enter__()


def test_relearning_lowers_the_loss_and_is_undone() -> None:
    """Positive control: steps at no rate change nothing."""
    loaded = tiny_loaded()
    weights = [each.clone() for each in loaded.model.parameters()]
    before = sum(each.nats for each in said(loaded, TEXTS))
    with relearned(loaded, TEXTS, steps=10, rate=1e-2) as history:
        after = sum(each.nats for each in said(loaded, TEXTS))
        assert not any(each.requires_grad for each in loaded.model.parameters())
    assert len(history) == 10
    assert after < 0.8 * before
    assert history[-1] < history[0] == pytest.approx(before / sum(len(ids) - first for ids, first in TEXTS), rel=1e-5)
    assert all(torch.equal(one, other) for one, other in zip(loaded.model.parameters(), weights, strict=True))
    with relearned(loaded, TEXTS, steps=10, rate=0.0):
        assert sum(each.nats for each in said(loaded, TEXTS)) == pytest.approx(before)


def test_relearning_goes_on_from_the_folded_weights() -> None:
    loaded, of = tiny_loaded(), changes(pruned())
    with folded(loaded, of):
        before = sum(each.nats for each in said(loaded, TEXTS))
        with relearned(loaded, TEXTS, steps=1) as history:
            pass
        assert history[0] == pytest.approx(before / sum(len(ids) - first for ids, first in TEXTS), rel=1e-5)
        assert sum(each.nats for each in said(loaded, TEXTS)) == pytest.approx(before)


def test_options_that_forget_most_within_the_cap_are_taken() -> None:
    assert best([(5.0, 1.0), (9.0, 1.09), (50.0, 1.3)]) == 1
    assert best([(50.0, 1.5), (9.0, 1.2)]) == 1, "where none keeps it, what disturbs least"
    there = {OWN: [Said(1.0, 1)], "mbpp": [Said(1.0, 1)], "wikitext": [Said(1.0, 2)]}
    here = {OWN: [Said(3.0, 1)], "mbpp": [Said(2.0, 1)], "wikitext": [Said(1.0, 2)]}
    forgotten, kept = judged(here, there)
    assert forgotten == pytest.approx(2.718281828**2, abs=1e-3)
    assert kept == pytest.approx(2.718281828**0.5, abs=1e-3)


EXAMS = {column: [Exam("1+2=", ["3.", "4.", "ab.", "c."], right) for right in (0, 2)] for column in (SKILLED, OTHER)}


def test_the_likeliest_choice_a_token_is_taken() -> None:
    loaded = tiny_loaded()
    ((exam, _), _) = EXAMS.values()
    asked = [examples(loaded.codec, [Item(exam.question, choice)])[0] for choice in exam.choices]
    nats = [each.nats / each.tokens for each in said(loaded, asked)]
    best = nats.index(min(nats))
    of = [exam._replace(right=right) for right in range(4)]
    turned = [exam._replace(choices=exam.choices[turn:] + exam.choices[:turn], right=best) for turn in range(4)]
    assert taken(loaded, of) == [right == best for right in range(4)]
    assert taken(loaded, turned) == [True, False, False, False], "each question's own choices are compared"


def test_a_model_that_is_not_finite_chooses_nothing() -> None:
    loaded = tiny_loaded()
    with torch.no_grad():
        next(loaded.model.lm_head.parameters()).fill_(torch.nan)
    with pytest.raises(GuardReadingError, match="not finite"):
        taken(loaded, EXAMS[OTHER])


def test_exam_questions_are_of_the_test_side(tmp_path: Path) -> None:
    data = write_data(tmp_path)
    found = exams(data, 3)
    assert {column: len(of) for column, of in found.items()} == {SKILLED: 3, OTHER: 3}
    test, train = ({row["question"]: row for row in rows(data, "mmlu", split)} for split in (Split.TEST, Split.TRAIN))
    for exam in found[SKILLED] + found[OTHER]:
        row = test[exam.question]
        assert (exam.choices, exam.right) == (row["choices"], row["answer"])
        assert exam.question not in train


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_model("llama", seed=SEED, max_position_embeddings=256).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def loaded(model: Path) -> LoadedModel:
    return load_model(model)


def _texts() -> Material:
    asked = [Item(text, "3.") for text in sums(2, seed=7)]
    kept = {column: [Item(text, "a.") for text in words(2, seed=len(column))] for column in KEPT}
    retain = (Source("words", words(60)),)
    return Material(Source("sums", sums(60)), retain, {OWN: asked, **kept}, asked[:2], {OWN: asked, **kept})


@pytest.fixture
def running(model: Path, loaded: LoadedModel, tmp_path: Path) -> Iterator[Run]:
    """A run whose decode steps were timed before: drawn prompts are of more tokens than a tiny model has."""
    found = CUBE.calibrate(loaded, [Source("sums", sums(60))], [Source("words", words(60))], CubeOptions())
    found.save(tmp_path / "given", "mathematics")
    with RunFolder(tmp_path / "done", {}) as kept:
        for row in (GIVEN, "selective-pruning"):
            timed = {"ratio": 0.9, "low": 0.8, "high": 1.0}
            kept.append({"key": key_of(row=row, stage="decode"), "row": row, "stage": "decode", "found": timed})
        yield Run(model, loaded, _texts(), EXAMS, tmp_path / "given", tmp_path / "work", 1, kept, tokens=4)


def test_a_run_has_every_stage_and_goes_on(running: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    names = (NONE, GIVEN, "selective-pruning")
    of = [Candidate(f"fraction {share}", PruningOptions(fraction=share)) for share in (0.0001, 0.1, 0.2)]
    monkeypatch.setattr(guards, "COMPARED", {"selective-pruning": Compared(SELECTIVE_PRUNING, tuple(of))})
    rows = [running.row(name) for name in names]
    assert [row["kind"] for row in rows] == [NONE, "detector", "intervention"]
    assert [row["said"] is None for row in rows] == [False, True, False]
    assert [row["chosen"] is None for row in rows] == [False, True, False]
    assert [row["relearned"] is None for row in rows] == [False, True, False]
    assert len(rows[2]["made"]) == 3
    assert "selects 0 of 72 neurons" in rows[2]["made"][0]["refused"]
    assert [each["chosen"] for each in rows[2]["made"]].count(True) == 1
    refused: dict[str, Any] = {row["method"]: [each[0] for each in row["heard"][OWN]] for row in rows}
    assert not any(refused[NONE] + refused["selective-pruning"])
    assert any(refused[GIVEN]), "the detector of sums refuses some"
    shown = table(rows)
    assert shown[0]["perplexity"][OWN]["ratio"] == shown[0]["relearned"]["perplexity"]["ratio"] == 1
    assert shown[2]["perplexity"][OWN]["ratio"] != 1
    assert shown[2]["relearned"]["steps"] == 10
    assert shown[1]["s_unlearning"] is shown[1]["exams"] is None
    assert shown[0]["exams"][SKILLED]["total"] == 2
    assert shown[0]["s_unlearning"].keys() == {"rbar", "ubar", "s"}
    assert shown[1]["shares"]["mbpp"]["refused"]["total"] == shown[1]["any_rewording"]["total"] == 2
    assert as_line(shown[1]).startswith("ksd")

    def again(*_: object) -> None:
        raise AssertionError("done before")

    for name in ("ask", "make", "all_said", "taken", "relearned"):
        monkeypatch.setattr(run, name, again)
    assert [running.row(name) for name in names] == rows


def _shares(hits: int) -> dict[str, Any]:
    rate = {"hits": hits, "total": 4, "rate": hits / 4, "low": 0.0, "high": 0.5}
    return {column: {"refused": rate, "calculates": rate} for column in columns(_texts(), kept=True)}


def test_the_page_has_every_method_and_says_what_does_not_apply(tmp_path: Path) -> None:
    times = {"ratio": 3.25, "low": 3.0, "high": 3.5}
    rate = _shares(1)[OWN]["calculates"]
    common = {"tried": [], "any_rewording": rate, "exams": None}
    plain = {"method": NONE, "kind": NONE, "shares": _shares(2), "perplexity": None, "decode": None, "relearned": None}
    detector = {"method": GIVEN, "kind": "detector", "shares": _shares(1), "perplexity": None, "decode": times}
    trained = {"steps": 10, "perplexity": times, "perplexity_before": times, "calculates": rate}
    intervention: dict[str, Any] = {
        **{"method": "lunar", "kind": "intervention", "shares": _shares(0), "decode": times, "relearned": trained},
        **{"perplexity": dict.fromkeys(answered(_texts()), times)},
        **{"exams": {SKILLED: rate, OTHER: rate}, "s_unlearning": {"rbar": 0.5, "ubar": 0.75, "s": 0.375}},
        **{"tried": [{"options": "strength 8", "forgotten": 4.5, "kept": 1.05, "chosen": True}]},
    }
    intervention["tried"].append({"options": "strength 2", "refused": "nothing moved", "chosen": False})
    rows = [{**common, **row} for row in (plain, {**detector, "relearned": None}, intervention)]
    found = {"command": "python -m benchmarks.methods", "environment": {"commit": "c"}, "model": "tiny", "rows": rows}
    settings: dict[str, Any] = {
        "limit": 4,
        "exams": 4,
        "tokens": 64,
        "relearning": {"steps": 10, "rate": 2e-5, "texts": 8},
    }
    assert "No figures have been published yet" in choosing_page(Results(tmp_path))
    folder = tmp_path / "benchmarks" / "results"
    folder.mkdir(parents=True)
    (folder / "methods.json").write_text(json.dumps(found | settings))
    text = " ".join(choosing_page(Results(tmp_path)).split())
    assert "No figures" not in text
    assert "| `ksd` | 0.25 [0.00, 0.50] | 0.25 [0.00, 0.50] | 1 |" in text
    assert "| `lunar` | - | 0.00 [0.00, 0.50] | 3.25 [3.00, 3.50] |" in text
    assert "| `ksd` | not applicable: weights are whole | - | - |" in text
    assert "| `lunar` | 0.25 [0.00, 0.50] | 0.25 [0.00, 0.50] | 0.75 | 0.50 | 0.38 |" in text
    assert "RMU, Zephyr-7B: WMDP bio and cyber, MMLU | 0.312, 0.282 | 0.571 | 0.94 | 0.43 | 0.40 |" in text
    assert "| `lunar` | strength 8 (chosen) | 4.50 | 1.05 |" in text
    assert "| `lunar` | strength 2 | nothing moved | - |" in text
    assert "eras" not in text
