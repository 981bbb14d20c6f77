"""README's few figures, between two marks."""

from benchmarks.measurements.demo import guards, lowest, own_skill
from benchmarks.measurements.real_text import MODEL, others, own
from benchmarks.measurements.results import Results, only
from benchmarks.measurements.robustness import treated
from benchmarks.measurements.text import bullets, share, span
from benchmarks.measurements.transfer import word_problems

README = "README.md"
BEGIN = "<!-- figures: written by `python -m benchmarks.measurements` -->"
END = "<!-- end of figures -->"


def figures(results: Results) -> str:
    """The list of figures."""
    return bullets([_demo(results), _real_text(results), _reach(results), _evading(results), _vllm(results)])


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
        f"Demo: each of {len(detectors)} detectors leaves {left} of its own skill's right answers and at least "
        f"{share(kept)} of any other skill's."
    )


def _real_text(results: Results) -> str:
    rows = results.read("real_text")["rows"]
    parameters = results.read("heldout")["parameters"][MODEL]

    def skill(name: str) -> str:
        kept = others(rows, "default", name)
        caught = own(rows, "default", name)
        return f"{name} {share(caught['recall'])}, {share(kept['false_abstention'], 4)}, {share(kept['auroc'], 4)}"

    return (
        f"Real text, `--variant pooled`, a Llama of {parameters / 1e6:.0f} million parameters "
        "(recall, false abstention, AUROC): "
        f"{skill('mathematics')}; {skill('code')}."
    )


def _reach(results: Results) -> str:
    rows = results.read("transfer")["rows"]

    def recall(test: str) -> str:
        return share(only(rows, detector="pooled", forget="mathematics", test=test, role="forget")["recall"], 2)

    told = max(row["recall"] for row in word_problems(rows, "pooled"))
    return (
        f"There, uncalibrated mathematics, recall: other instruction {recall('gsm8k/solve')}, MMLU's high school "
        f"{recall('mmlu-high-school/qa')}, other languages {share(told, 2)}."
    )


def _evading(results: Results) -> str:
    rows = results.read("robustness")["rows"]

    def recall(treatment: str) -> str:
        return share(treated(rows, "pooled", "mathematics", treatment)["recall"], 2)

    return (
        f"There, mathematics that callers change, recall: typos {recall('typos')}, capitals {recall('upper-case')}, "
        f"at the end of about 300 tokens {recall('long-end')}."
    )


def _vllm(results: Results) -> str:
    parity, overhead = results.read("parity"), results.read("overhead")["rows"]
    differ = parity["disagree"] + sum(row.get("flipped", 0) for row in parity["rows"])
    slowest = min(row["ratio"] for row in overhead)
    return (
        f"vLLM on CPUs: on {parity['prompts']:,} prompts {differ} verdicts differ from the embedded engine's; guards "
        f"leave at least {share(slowest, 2)} of the speed."
    )
