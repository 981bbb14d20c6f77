"""The page, whole."""

from benchmarks.measurements.asked import asked_section
from benchmarks.measurements.attacks import attacks_section
from benchmarks.measurements.calibration import calibration_section
from benchmarks.measurements.clients import clients_section, conformance_section
from benchmarks.measurements.demo import demo_section, figure4_section
from benchmarks.measurements.faults import faults_section, fuzz_section, soak_section
from benchmarks.measurements.image import image_section
from benchmarks.measurements.likelihoods import likelihoods_section
from benchmarks.measurements.load import authors_section, load_section
from benchmarks.measurements.methods import methods_section
from benchmarks.measurements.operators import operators_section
from benchmarks.measurements.probes import probes_section
from benchmarks.measurements.results import Results
from benchmarks.measurements.robustness import robustness_section
from benchmarks.measurements.startup import startup_section
from benchmarks.measurements.text import paragraph
from benchmarks.measurements.tofu import tofu_section
from benchmarks.measurements.transfer import transfer_section
from benchmarks.measurements.unlearning import unlearning_section
from benchmarks.measurements.vllm import many_section, overhead_section, parity_section
from benchmarks.measurements.watched import watched_section

PAGE = "docs/measurements.md"
COMMAND = "python -m benchmarks.measurements"


def _real_models(results: Results) -> list[str]:
    """What was measured of each."""
    made = (
        ("unlearning", unlearning_section),
        ("transfer", transfer_section),
        ("robustness", robustness_section),
        ("probes", probes_section),
        ("tofu", tofu_section),
    )
    found = [(model, section) for name, section in made for model in results.models(name)]
    return [section(results, model) for model, section in sorted(found, key=lambda pair: pair[0])]


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
        demo_section(results),
        figure4_section(results),
        *filter(None, [asked_section(results)]),
        *_real_models(results),
        parity_section(results),
        overhead_section(results),
        *filter(None, [startup_section(results)]),
        *filter(None, [operators_section(results), many_section(results), calibration_section(results)]),
        *filter(None, [load_section(results), authors_section(results)]),
        *filter(None, [clients_section(results), conformance_section(results), likelihoods_section(results)]),
        *filter(None, [attacks_section(results), faults_section(results), soak_section(results)]),
        *filter(None, [fuzz_section(results)]),
        *filter(None, [watched_section(results), image_section(results)]),
        methods_section(),
    ]
    return "\n\n".join(parts) + "\n"
