"""How the figures on real models were measured: prose that no result file changes."""

from pathlib import Path

from benchmarks.detectors.plans import FORGET_LIMIT, LONG_LIMIT, RETAIN_LIMIT

TEMPLATE = Path(__file__).with_name("methods.md")


def methods_section() -> str:
    """Detectors, figures, prompt sets and treatments."""
    text = TEMPLATE.read_text(encoding="utf-8")
    return text.format(forget_limit=FORGET_LIMIT, retain_limit=RETAIN_LIMIT, long_limit=LONG_LIMIT).rstrip()
