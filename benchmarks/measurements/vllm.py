"""On vLLM: whether verdicts are the same, and what guards cost."""

from collections.abc import Mapping
from typing import Any

from benchmarks.measurements.results import Results, Row, matching
from benchmarks.measurements.text import between, measured, paragraph, section, share, sizes, table
from benchmarks.overhead import DECODE, PREFILL, Workload

GUARDS = {
    "none": "none: the engine's own cost",
    "1 cube, last layer": "one cube at the last layer",
    "16 cubes, every layer": "16 cubes at every layer",
    "256 cubes, last layer": "256 guards of one cube at the last layer",
    "1 pooled, 4 layers": "one pooled guard at four layers",
    "1 over spans, 4 layers": "one guard over spans at four layers",
    "1 over spans, 1 layer": "one guard over spans at one layer",
    "256 over spans, 1 layer": "256 guards over spans at one layer",
    "neuron adjust 3 %": "Neuron Adjust, 3 %",
    "selective pruning 3 %": "Selective Pruning, 3 %",
    "rank one, 1 layer": "LUNAR, rank one at one layer",
    "rank 16, 3 layers": "RMU, rank 16 at three layers",
}


def _statistics(rows: list[Row]) -> str:
    """What shows that a variant did what it is named for."""
    said = []
    for field in ("cached_tokens", "preemptions"):
        found = [row[field] for row in rows if field in row]
        if found:
            said.append(f"{field.replace('_', ' ')}: {' and '.join(f'{n:,}' for n in dict.fromkeys(found))}")
    return ", ".join(said) or "-"


def _parity_line(variant: str, rows: list[Row]) -> tuple[str, ...]:
    asked = [f"{sizes(having, kind)} {kind}" for kind in ("prompts", "answers") if (having := _with(rows, kind))]
    return (
        variant,
        ", ".join(asked),
        str(sum(row["disagree"] for row in rows)),
        str(sum(row["within_margin"] for row in rows)),
        f"{max(row['max_relative_score_difference'] for row in rows):.1e}",
        _statistics(rows),
    )


def _with(rows: list[Row], field: str) -> list[Row]:
    return [row for row in rows if field in row]


def parity_section(results: Results) -> str:
    """Verdicts on vLLM against verdicts of the embedded engine."""
    files = [results.read(f"parity.{model}") for model in results.models("parity")]
    return section(
        "vLLM: the same verdicts",
        paragraph(
            "The same guards were served by vLLM and by the embedded engine, in float32. A verdict disagrees when it "
            "differs although the embedded engine's score lies farther from tau than a share of "
            f"{files[0]['margin']} of tau; scores nearer than that are counted as within the margin. Score differences "
            "are relative to the score or to tau, whichever is larger; those of whole answers are absolute. Of an "
            "intervention the reading at the last token is compared, which may differ by what its canaries may."
        ),
        *(part for found in files for part in _parity(found)),
    )


def _parity(found: Mapping[str, Any]) -> list[str]:
    rows: list[Row] = found["rows"]
    guards = ", ".join(f"`{name}`" for name in dict.fromkeys(row["guard"] for row in rows))
    whole = _with(rows, "answers")
    said, sample = f"{found['disagree']} disagree in all.", f"{found['prompts']:,} real prompts a variant"
    if whole:
        said = f"{said[:-1]}; {sum(row['other_text'] for row in whole)} of the whole answers have another text."
        sample += f", and {sizes(whole, 'answers')} whole answers with preemptions"
    return [
        f"### {found['model']}: {guards}",
        measured(found, sample),
        table(
            ("vLLM runs", "compared", "disagree", "within the margin", "largest score difference", "vLLM's statistics"),
            [
                _parity_line(variant, matching(rows, variant=variant))
                for variant in dict.fromkeys(row["variant"] for row in rows)
            ],
        ),
        paragraph(said),
    ]


def _size(load: Workload) -> str:
    if load.drawn > 1:
        return f"{load.prompts} answers of {load.drawn} tokens"
    return f"{load.prompts} prompts of {load.prompt_tokens} tokens"


def overhead_section(results: Results) -> str:
    """Guarded over unguarded tokens a second."""
    found = results.read("overhead")
    rows, model, abstained = found["rows"], found["model"], found["abstained"]
    loads = (DECODE, PREFILL)

    def cell(guards: str, load: Workload) -> str:
        (row,) = matching(rows, guards=guards, workload=load.name)
        return f"{share(row['ratio'], 2)} {between((row['low'], row['high']), 2)}"

    return section(
        "vLLM: what guards cost",
        paragraph(
            "vLLM itself and skillguard's engine, whose guards never fire, were asked in turns on CPUs: "
            f"{found['mode']}, {model['dtype']}, random weights in {model['layers']} layers of width "
            f"{model['d_model']:,} and feed-forward width {model['d_ff']:,}. The table shows tokens a second, guarded "
            "over unguarded, with a bootstrap interval of 95 %."
        ),
        measured(found, f"{sizes(rows, 'rounds')} rounds of each engine"),
        table(
            ("guards", *map(_size, loads)),
            [
                (GUARDS.get(name, name), *(cell(name, load) for load in loads))
                for name in dict.fromkeys(row["guards"] for row in rows)
            ],
        ),
        paragraph(
            "A ratio above 1 shows how far two things reach: the machine's noise, and the two ways of turning tokens "
            "into text. Guards do not make a model faster. A cube is scored at every prompt token, because vLLM "
            "selects the rows it samples after the model."
        ),
        paragraph(
            f"A refused request takes {share(abstained['ratio'], 2)} "
            f"{between((abstained['low'], abstained['high']), 2)} of an unguarded time to the first token."
        ),
    )


def many_section(results: Results) -> str:
    """Many guards beside one; empty where nobody measured."""
    found = results.read_if_there("overhead.many")
    if found is None:
        return ""
    rows, model, loads = found["rows"], found["model"], (DECODE, PREFILL)
    return section(
        "Many guards beside one",
        paragraph(
            f"Tokens a second of our {found['engine']} engine with many guards at one place over those with one there, "
            f"both served in one run and asked in turns: {model['dtype']}, random weights in {model['layers']} layers "
            f"of width {model['d_model']:,} and feed-forward width {model['d_ff']:,}. The interval is a bootstrap of "
            "95 %. Wanted: 0.95."
        ),
        measured(found, f"{sizes(rows, 'rounds')} rounds of each"),
        table(
            ("guards", "beside", *map(_size, loads)),
            [
                (
                    GUARDS[name],
                    GUARDS[one],
                    *(
                        f"{share(row['ratio'])} {between((row['low'], row['high']))}"
                        for load in loads
                        for row in matching(rows, guards=name, workload=load.name)
                    ),
                )
                for name, one in dict.fromkeys((row["guards"], row["against"]) for row in rows)
            ],
        ),
    )
