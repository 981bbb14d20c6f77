"""S-unlearning and Deviation Score in the layouts of their papers, with what these published beside."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from server.evaluation.cells import interval, markdown_table, number
from server.evaluation.measures import s_unlearning

Results = Mapping[str, Any]


@dataclass(frozen=True)
class Recalls:
    """A published row: mean ROUGE-1 recalls of what is forgotten and of the rest, and their Deviation Score."""

    of: str
    forget: float
    retain: float
    score: float


@dataclass(frozen=True)
class Accuracies:
    """A published row of multiple choice with four choices: what is forgotten, by its parts, and the rest."""

    of: str
    forget: tuple[float, ...]
    retain: float


TOFU = (Recalls("LUNAR, Llama-2-7B, TOFU", 0.109, 0.898, 14.9),)
"""*LLM Unlearning via Neural Activation Redirection* (LUNAR). Their recall is of stemmed words."""
WMDP = (
    Accuracies("no guard, Zephyr-7B: WMDP bio and cyber, MMLU", (0.637, 0.440), 0.581),
    Accuracies("RMU, Zephyr-7B: WMDP bio and cyber, MMLU", (0.312, 0.282), 0.571),
)
"""*The WMDP Benchmark* (RMU); S is worked out of its accuracies."""
BEST_S = ("the best row of *Model Unlearning Objectives Vary for Distinct Language Functions*, Mistral: WMDP", 0.43)


def _guards(results: Results, score: str) -> list[tuple[str, Mapping[str, Any]]]:
    """Rows of one score: of each skill the model without a guard, and its guards."""
    found: dict[str, list[tuple[str, Mapping[str, Any]]]] = {}
    for guard in results["guards"]:
        if guard[score] is not None:
            own = f"no guard: {', '.join(guard['own'])}"
            rows = found.setdefault(own, [(own, guard["without"][score])])
            rows.append((f"`{guard['guard']}`", guard[score]))
    return [row for rows in found.values() for row in rows]


def _measures(results: Results, kind: str) -> bool:
    """Whether a guard's own suites are of a kind, so that published rows of it are something to compare with."""
    kinds = {suite["label"]: suite["kind"] for suite in results["suites"]}
    return any(kinds[label] == kind for guard in results["guards"] for label in guard["own"])


def _section(title: str, says: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n\n".join([f"## {title}", says, markdown_table(head, rows)]) if rows else ""


def deviation_section(results: Results) -> str:
    """LUNAR's table; nothing where no guard has a Deviation Score."""
    rows = [
        [name, *(interval(found[figure], "value", places) for figure, places in _RECALLS)]
        for name, found in _guards(results, "deviation_score")
    ]
    if rows and _measures(results, "tofu"):
        rows += [
            [f"published: {each.of}", number(each.forget), number(each.retain), number(each.score, 1)] for each in TOFU
        ]
    says = (
        "Mean ROUGE-1 recall of the gold answers, of what a guard is to forget and of the rest, and `100 sqrt(R_f^2 + "
        "(1 - R_r)^2)`, 0 at best, with bootstrap intervals of 95 %. An answer that is withheld has recall 0."
    )
    return _section("Deviation Score", says, ("", "forget: ROUGE-1", "retain: ROUGE-1", "Deviation Score"), rows)


_RECALLS = (("forget", 3), ("retain", 3), ("score", 1))


def unlearning_section(results: Results) -> str:
    """S-unlearning's table; nothing where no guard has an S."""
    rows = [
        [name, *(number(found[figure]) for figure in ("ubar", "rbar", "s"))]
        for name, found in _guards(results, "s_unlearning")
    ]
    if rows and _measures(results, "choices"):
        for each in WMDP:
            found = s_unlearning([(of, 0.25) for of in each.forget], [(each.retain, 0.25)])
            assert found is not None, "both sides have accuracies"
            rows.append([f"published: {each.of}", *(number(value) for value in (found.ubar, found.rbar, found.s))])
        name, best = BEST_S
        rows.append([f"published: {name}", number(None), number(None), number(best, 2)])
    says = (
        "`Rbar = clip((R - c) / (1 - c))` of the other suites' accuracies R, `Ubar = 1 - clip((U - c) / (1 - c))` of "
        "the own ones' U, c the chance level, and `S = Ubar Rbar`, 1 at best."
    )
    return _section("S-unlearning", says, ("", "Ubar", "Rbar", "S"), rows)
