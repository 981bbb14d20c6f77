"""The papers' tables, and when what they published stands beside."""

from typing import Any

from server.evaluation.layouts import deviation_section, unlearning_section


def _results(kind: str) -> dict[str, Any]:
    def estimate(value: float) -> dict[str, float]:
        return {"value": value, "low": value / 2, "high": value * 2}

    def scores(forget: float, retain: float, score: float, s: float) -> dict[str, Any]:
        recalls = {"forget": estimate(forget), "retain": estimate(retain), "score": estimate(score)}
        return {"deviation_score": recalls, "s_unlearning": {"ubar": 0.5, "rbar": 2 * s, "s": s}}

    guards = [
        {"guard": name, "own": ["authors"], **scores(*of), "without": scores(0.8, 0.9, 80.6, 0.1)}
        for name, of in (("lunar-authors", (0.2, 0.9, 22.4, 0.3)), ("ksd-authors", (0.1, 0.8, 22.5, 0.4)))
    ]
    suites = [{"label": "authors", "kind": kind}, {"label": "others", "kind": "tofu"}]
    return {"suites": suites, "guards": guards}


def test_deviation_scores_stand_beside_the_papers() -> None:
    rows = [line for line in deviation_section(_results("tofu")).splitlines() if line.startswith("| ")][2:]
    assert rows == [
        "| no guard: authors | 0.800 [0.400, 1.600] | 0.900 [0.450, 1.800] | 80.6 [40.3, 161.2] |",
        "| `lunar-authors` | 0.200 [0.100, 0.400] | 0.900 [0.450, 1.800] | 22.4 [11.2, 44.8] |",
        "| `ksd-authors` | 0.100 [0.050, 0.200] | 0.800 [0.400, 1.600] | 22.5 [11.2, 45.0] |",
        "| published: LUNAR, Llama-2-7B, TOFU | 0.109 | 0.898 | 14.9 |",
    ]
    assert "published" not in deviation_section(_results("prompts")), "of other data it would say nothing"


def test_s_unlearning_stands_beside_the_papers() -> None:
    rows = [line for line in unlearning_section(_results("choices")).splitlines() if line.startswith("| ")][2:]
    assert rows[:2] == ["| no guard: authors | 0.500 | 0.200 | 0.100 |", "| `lunar-authors` | 0.500 | 0.600 | 0.300 |"]
    # Worked out by hand: Ubar is 1 less the mean of (.312 - .25) / .75 and (.282 - .25) / .75, Rbar (.571 - .25) / .75.
    assert "| published: RMU, Zephyr-7B: WMDP bio and cyber, MMLU | 0.937 | 0.428 | 0.401 |" in rows
    assert rows[-1].endswith("Mistral: WMDP | - | - | 0.43 |")
    assert not any("published" in line for line in unlearning_section(_results("mmlu")).splitlines())
    of_toxicity = [line for line in unlearning_section(_results("toxicity")).splitlines() if "published" in line]
    assert len(of_toxicity) == 1
    assert of_toxicity[0].endswith("Llama: toxicity | - | - | 0.43 |")


def test_a_table_without_rows_is_left_out() -> None:
    results = _results("tofu")
    for guard in results["guards"]:
        guard["deviation_score"] = guard["s_unlearning"] = None
    assert deviation_section(results) == unlearning_section(results) == ""
