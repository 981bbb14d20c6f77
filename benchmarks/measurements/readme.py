"""README's few figures, between two marks."""

from collections.abc import Iterable, Sequence

from benchmarks.asked.cells import LONG_TOKENS, SHORT_TOKENS
from benchmarks.measurements.demo import guards, lowest, own_skill
from benchmarks.measurements.results import Results, Row, matching, only
from benchmarks.measurements.robustness import OWN
from benchmarks.measurements.text import bullets, share, span, table

README = "README.md"
BEGIN = "<!-- figures: written by `python -m benchmarks.measurements` -->"
END = "<!-- end of figures -->"
WRITTEN = "written/"
"""Cells of answers to their end."""
_ASKED = (
    "recall over HTTP",
    "plain",
    *(f"beside {tokens:,} tokens" for tokens in (SHORT_TOKENS, LONG_TOKENS)),
    "changed",
    "of others: prompts, answers refused",
)


def figures(results: Results) -> str:
    """The list of figures."""
    said = bullets([_demo(results), _vllm(results)])
    asked = [line for model in results.models("asked") for line in _asked(results, model)]
    return "\n\n".join([said, *([table(_ASKED, asked)] if asked else [])])


def with_figures(readme: str, results: Results) -> str:
    """README with its figures as the result files have them."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise LookupError(f"{README} lacks the lines {BEGIN!r} and {END!r}, in this order: figures stand between them")
    return f"{before}{begin}\n{figures(results)}\n{end}{after}"


def _demo(results: Results) -> str:
    rows = results.read("demo_skills")["rows"]
    detectors = [name for name in guards(rows) if name.startswith("ksd")]
    left = span(only(rows, guard=name, skill=own_skill(name))["relative"] for name in detectors)
    kept = min(lowest(rows, name)["relative"] for name in detectors)
    return (
        f"Demo: {len(detectors)} detectors each leave {left} of their own skill's right answers and at least "
        f"{share(kept)} of any other's."
    )


def _asked(results: Results, model: str) -> list[tuple[str, ...]]:
    """A line for each guard: what is refused of its own questions, in frames, beside other text and changed."""
    every: list[Row] = results.read(f"asked.{model}")["rows"]
    rows, found = [row for row in every if "while_written" not in row], []
    for guard, skill in dict.fromkeys((row["guard"], row["skill"]) for row in rows if row["skill"] in OWN):
        own, asked = OWN[skill], matching(rows, guard=guard)
        shapes = {
            row["cell"].removeprefix(own).removeprefix("/"): row["rate"]
            for row in asked
            if row["cell"].split("/")[0] == own
        }
        groups = [
            [shapes.pop(name) for name in ("", "bare", "qa") if name in shapes],
            *([shapes.pop(name) for name in _beside(shapes, tokens)] for tokens in (SHORT_TOKENS, LONG_TOKENS)),
            [*shapes.values()],
        ]
        others = matching(asked, role="retain")
        if any(groups) and others:
            answers = [row for row in matching(every, guard=guard, role="retain") if row["cell"].startswith(WRITTEN)]
            refused = ", ".join(_refused(of) for of in (others, answers) if of)
            said = [span(rates, 2) if rates else "-" for rates in groups]
            found.append((f"{model}, `{guard}`", *said, refused))
    return found


def _refused(rows: Sequence[Row]) -> str:
    return f"{sum(row['hits'] for row in rows)} of {sum(row['total'] for row in rows):,}"


def _beside(shapes: Iterable[str], tokens: int) -> list[str]:
    return [name for name in shapes if name.endswith(f"-of-{tokens}")]


def _vllm(results: Results) -> str:
    files = [results.read(f"parity.{model}") for model in results.models("parity")]
    asked = sum(found["prompts"] for found in files)
    differ = sum(found["disagree"] + sum(row.get("flipped", 0) for row in found["rows"]) for found in files)
    slowest = min(row["ratio"] for row in results.read("overhead")["rows"])
    models = ", ".join(results.models("parity"))
    return (
        f"vLLM on CPUs: {differ} of {asked:,} prompts ({models}) are judged otherwise than embedded; at least "
        f"{share(slowest, 2)} of the speed is left."
    )
