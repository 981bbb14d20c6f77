"""What guards' operators cost by themselves, and the operations of a step."""

from benchmarks.measurements.results import Results
from benchmarks.measurements.text import measured, paragraph, section, table


def operators_section(results: Results) -> str:
    """Empty where they were not measured."""
    found = results.read_if_there("operators")
    if found is None:
        return ""
    steps: dict[str, dict[str, int]] = {}
    for row in found["steps"]:
        steps.setdefault(row["guards"], {})[row["step"]] = row["computing"]
    plain = steps["none"]
    return section(
        "What operators cost",
        paragraph(
            "Every kind of operator at one place, against a copy of the vectors that it reads, in turns. Many guards "
            "at one place are one operator: guards over spans one matrix product. Below, the operations of one step of "
            "the embedded engine, views left out: on a GPU, where each is launched by itself, they are what a small "
            "model's step costs."
        ),
        measured(found, f"{found['dtype']}, {found['threads']} thread(s)"),
        table(
            ("operator", "d_ff", "tokens", "guards", "mode", "a copy, us", "operator, us", "operator / copy"),
            [
                (
                    row["method"],
                    f"{row['d_ff']:,}",
                    f"{row['tokens']:,}",
                    str(row["guards"]),
                    row["mode"],
                    f"{row['copy_us']:,.0f}",
                    f"{row['operator_us']:,.0f}",
                    f"{row['times_copy']:,.1f}",
                )
                for row in found["rows"]
            ],
        ),
        table(
            ("guards", "decode step", "above none", "prefill step", "above none"),
            [
                (
                    name,
                    f"{of['decode']:,}",
                    f"{of['decode'] - plain['decode']:,}",
                    f"{of['prefill']:,}",
                    f"{of['prefill'] - plain['prefill']:,}",
                )
                for name, of in steps.items()
            ],
        ),
    )
