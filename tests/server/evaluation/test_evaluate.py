"""A whole evaluation against scripted engines, worked out by hand: run, stopped, resumed, drawn."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from guards.errors import DataError
from server.engines.errors import EngineError
from server.engines.events import Chunk, Finish, FinishReason, TokenLogprob
from server.engines.scripted.engine import ScriptedEngine
from server.engines.scripted.scripts import Script
from server.errors import EvaluationError
from server.evaluation.evaluate import Evaluation, evaluate
from server.evaluation.figures import drops, figures, matrix_of
from server.evaluation.options import EvaluationOptions
from server.evaluation.results import own_suites
from server.evaluation.suites import read_suites
from server.evaluation.tables import markdown
from tests.server.evaluation.samples import arm, engine, suites, write_jsonl

OPTIONS = EvaluationOptions(concurrency=2)


def run(folder: Path, *engines: Any, own: tuple[str, ...] = (), plots: bool = False) -> dict[str, Any]:
    arms = [arm(played) for played in engines]
    evaluation = Evaluation(arms, suites(folder, OPTIONS), OPTIONS, own)
    return evaluate(evaluation, folder / "run", plots=plots, quiet=True)


def test_figures_worked_out_by_hand(tmp_path: Path) -> None:
    """Without: 3 of 3 sums, 1 of 2 words. With: two sums and the word that was right are withheld."""
    results = run(tmp_path, engine(), engine("1+1", "2+2", "cat"))
    assert [(suite["label"], suite["accuracy"]["hits"]) for suite in results["suites"]] == [("sums", 3), ("words", 1)]
    (guard,) = results["guards"]
    assert (guard["guard"], guard["own"]) == ("ksd-sums", ["sums"])
    sums, words = guard["suites"]["sums"], guard["suites"]["words"]
    assert (sums["relative"]["value"], words["relative"]["value"]) == (pytest.approx(1 / 3, abs=1e-6), 0)
    assert (guard["recall"]["hits"], guard["recall"]["total"]) == (2, 3)
    assert (guard["false_abstention"]["hits"], guard["false_abstention"]["total"]) == (1, 2)
    assert guard["auroc"] == 0.5  # the scripted engine gives every prompt one score
    assert (sums["rouge1"], words["rouge1"]) == (pytest.approx(1 / 3, abs=1e-6), 0)
    deviation = guard["deviation_score"]
    assert [deviation[figure]["value"] for figure in ("forget", "retain")] == [pytest.approx(1 / 3, abs=1e-6), 0]
    assert deviation["score"]["value"] == pytest.approx(100 * (1 / 9 + 1) ** 0.5, abs=1e-3)
    assert deviation["score"]["low"] < deviation["score"]["value"] < deviation["score"]["high"]
    assert guard["without"]["deviation_score"]["score"]["value"] == pytest.approx(100 * (1 + 1 / 4) ** 0.5, abs=1e-3)
    assert guard["s_unlearning"] == {"rbar": 0, "ubar": pytest.approx(2 / 3, abs=1e-6), "s": 0}
    assert json.loads((tmp_path / "run" / "results.json").read_text()) == results
    table = (tmp_path / "run" / "results.md").read_text()
    assert "| `ksd-sums` | **0.333 [0.008, 0.906]** | 0.000 [0.000, 0.975] |" in table
    assert "| `ksd-sums` | 0.667 [0.094, 0.992] | 0.500 [0.013, 0.987] | 0.5000 |" in table


def test_letters_and_chance_are_those_of_each_item(tmp_path: Path) -> None:
    """E is the likeliest token: of five choices it is the answer, of three C is, which the next token says."""
    drawn = TokenLogprob("E", b"E", -0.5, (("E", b"E", -0.5), ("C", b"C", -1.0)))
    played = (Chunk("E", 1, (drawn,)), Finish(FinishReason.LENGTH, 0, completion_tokens=1, verified=True))
    rows: list[dict[str, Any]] = [
        {"question": "Which?", "choices": list("vwxyz"), "answer": "E"},
        {"question": "Which?", "choices": list("xyz"), "answer": 2},
    ]
    spec = f"choices:biology={write_jsonl(tmp_path / 'wmdp.jsonl', rows)}"
    results = evaluate(
        Evaluation([arm(ScriptedEngine([Script(played)], guards=()))], read_suites([spec], [], OPTIONS), OPTIONS),
        tmp_path / "run",
        plots=False,
        quiet=True,
    )
    (suite,) = results["suites"]
    assert (suite["skill"], suite["accuracy"]["hits"], suite["unread"]) == ("biology", 2, 0)
    assert suite["chance"] == pytest.approx((1 / 5 + 1 / 3) / 2, abs=1e-6)


def test_a_stopped_run_goes_on_and_repeats_nothing(tmp_path: Path) -> None:
    whole = run(tmp_path, engine(), engine("1+1"))
    (tmp_path / "whole").mkdir()
    (tmp_path / "run").rename(tmp_path / "whole" / "run")

    broken = engine()
    broken.scripts = broken.scripts[1:]  # nothing is known of 1+1
    with pytest.raises(EvaluationError, match=r"1 items have no answer.*none, sums, '1\+1': got HTTP 400"):
        run(tmp_path, broken, engine("1+1"))
    assert not (tmp_path / "run" / "results.json").exists()
    before, after = engine(), engine("1+1")
    resumed = run(tmp_path, before, after)
    assert (len(before.submitted), len(after.submitted)) == (1, 0)
    assert resumed.pop("timings") != whole.pop("timings")
    assert resumed == whole

    before, after = engine(), engine("1+1")
    run(tmp_path, before, after)
    assert before.submitted == after.submitted == []


def test_same_items_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        run(tmp_path / name, engine(), engine("1+1"))
    texts = [(tmp_path / name / "run" / "results.json").read_text() for name in ("a", "b")]
    first, second = (
        text.partition(' "timings"')[0].replace(f"{name}/", "") for name, text in zip("ab", texts, strict=True)
    )
    assert first == second


def test_items_that_do_not_fit_are_left_out_only_where_that_was_asked(tmp_path: Path) -> None:
    def short(*withheld: str) -> ScriptedEngine:
        return engine(*withheld, max_model_tokens=290)

    def asked(folder: str, **more: Any) -> dict[str, Any]:
        options = EvaluationOptions(**more)
        read = read_suites([f"prompts:sums={path}", f"prompts:words={words}"], [], options)
        return evaluate(
            Evaluation([arm(short()), arm(short("1+1"))], read, options), tmp_path / folder, plots=False, quiet=True
        )

    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": p, "answer": "2"} for p in ("1+1", "1+1 " + "x" * 99)])
    words = write_jsonl(tmp_path / "b.jsonl", [{"prompt": "cat", "answer": "gato"}])
    with pytest.raises(EvaluationError, match=r"2 items have no answer.*--too-long leave-out"):
        asked("failed")
    results = asked("left", too_long="leave-out")
    assert [(suite["items"], suite["left_out"]) for suite in results["suites"]] == [(1, 1), (1, 0)]
    assert results["guards"][0]["recall"]["total"] == 1
    assert "sums: 1 items do not fit" in (tmp_path / "left" / "results.md").read_text()


def test_a_dead_server_ends_the_run_early(tmp_path: Path) -> None:
    broken = engine()
    broken.refusal = EngineError("dead")
    with pytest.raises(EvaluationError, match="5 items have no answer"):
        run(tmp_path, broken, engine("1+1"))


def test_whose_suites_are_whose(tmp_path: Path) -> None:
    arms, read = [arm(engine()), arm(engine("1+1"))], suites(tmp_path, OPTIONS)
    assert own_suites(arms, read, []) == {"ksd-sums": ("sums",)}
    assert own_suites(arms, read, ["ksd-sums=words,sums"]) == {"ksd-sums": ("words", "sums")}
    assert own_suites(arms, read, ["ksd-sums=none"]) == {"ksd-sums": ()}
    with pytest.raises(DataError, match="wanted GUARD=LABEL"):
        own_suites(arms, read, ["ksd-sums=other"])
    with pytest.raises(DataError, match="no suite measures its skill sums"):
        own_suites(arms, read[1:], [])


def test_a_guard_whose_skill_is_not_measured(tmp_path: Path) -> None:
    (guard,) = run(tmp_path, engine(), engine("1+1"), own=("ksd-sums=none",))["guards"]
    assert (guard["recall"], guard["s_unlearning"], guard["deviation_score"]) == (None, None, None)
    assert guard["false_abstention"]["total"] == 5
    assert "no suite measures its skill" in guard["notes"]


def languages() -> dict[str, Any]:
    """Two language guards on two languages and one other skill."""

    def guard(name: str, own: str, values: dict[str, float | None]) -> dict[str, Any]:
        cells = {
            label: {
                "own": label == own,
                "relative": value if value is None else {"value": value, "low": 0.0, "high": 1.0},
            }
            for label, value in values.items()
        }
        return {"guard": name, "own": [own], "suites": cells}

    return {
        "settings": {"model": "m"},
        "suites": [
            {"label": label, "skill": skill, "accuracy": {"rate": 1.0}}
            for label, skill in (("es", "es"), ("de", "language-de"), ("x", "x"))
        ],
        "guards": [
            guard("ksd-es", "es", {"es": 0.1, "de": 0.9, "x": 1.0}),
            guard("ksd-x", "x", {"es": 1.0, "de": 1.0, "x": 0.0}),
            guard("ksd-de", "de", {"es": None, "de": 0.25, "x": 1.0}),
        ],
    }


def test_the_language_matrix_has_esus_order() -> None:
    rows, columns = matrix_of(languages())
    assert (rows, columns) == (["ksd-de", "ksd-es"], ["de", "es"])
    (de, none), (es_de, es) = drops(languages(), rows, columns)
    assert (de, none != none, round(es_de, 6), round(es, 6)) == (0.75, True, 0.1, 0.9)


def test_figures_are_drawn() -> None:
    pytest.importorskip("matplotlib")
    found = figures(languages())
    assert sorted(found) == ["languages.png", "relative.png"]
    assert all(png.startswith(b"\x89PNG") for png in found.values())
    assert found == figures(languages())


def test_missing_matplotlib_is_said_before_anything_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(EvaluationError, match="skillguard\\[plots\\]"):
        run(tmp_path, engine(), engine("1+1"), plots=True)
    assert not (tmp_path / "run").exists()


def test_tables_escape_what_would_break_them(tmp_path: Path) -> None:
    results = run(tmp_path, engine(), engine("1+1"))
    results["settings"]["suites"]["sums"]["source"] = "a|b"
    assert "| a\\|b |" in markdown(results)
