"""The page, whole."""

from benchmarks.measurements.asked import asked_section
from benchmarks.measurements.demo import demo_section, figure4_section
from benchmarks.measurements.methods import methods_section
from benchmarks.measurements.real_text import heldout_section, table_section
from benchmarks.measurements.results import Results
from benchmarks.measurements.robustness import robustness_section
from benchmarks.measurements.text import paragraph
from benchmarks.measurements.transfer import transfer_section
from benchmarks.measurements.vllm import overhead_section, parity_section

PAGE = "docs/measurements.md"
COMMAND = "python -m benchmarks.measurements"
SECTIONS = (
    demo_section,
    figure4_section,
    table_section,
    heldout_section,
    transfer_section,
    robustness_section,
    asked_section,
    parity_section,
    overhead_section,
)


def page(results: Results) -> str:
    """Markdown of every figure and of how it was measured."""
    parts = [
        f"<!-- Written by `{COMMAND}`; edit benchmarks/measurements/ instead. -->",
        "# Measurements",
        paragraph(
            f"`{COMMAND}` writes this page from the result files in `benchmarks/results/`. Each section names the "
            "command that measured it. `docs/evaluating.md` explains how to measure a guard of your own. ESU is "
            "*Effective Skill Unlearning through Intervention and Abstention* (NAACL 2025)."
        ),
        *(found for section in SECTIONS if (found := section(results))),
        methods_section(),
    ]
    return "\n\n".join(parts) + "\n"
