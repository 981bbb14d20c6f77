"""Rebuilds the demo's guards from its calibration prompts: `python -m artifacts.demo.guards`.

The same calibration that `skillguard calibrate` runs, with the options below; a quarter of an hour on one core. The
last digits, and so the bytes, depend on the number of threads; those here are of one (OMP_NUM_THREADS=1).
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from artifacts.demo.build.rows import LANGUAGES, SKILLS
from guards.calibration.sources import Source, read_source
from guards.inside.transformers.loading import load_model
from guards.methods.neuron_adjust.calibrate import calibrate as calibrate_neuron_adjust
from guards.methods.neuron_adjust.options import NeuronAdjustOptions
from guards.methods.spans.calibrate import calibrate as calibrate_spans
from guards.methods.spans.options import SpanOptions

DEMO = Path(__file__).resolve().parent
FRAMES = ("chat", "Q: {text}\nA:")
KSD_OPTIONS = SpanOptions(frames=FRAMES, material="none", longest=128, placement="tight", progress=True)
"""What suits a model this small: it was trained on none of the shipped material and on no long text, and what it makes
of them is noise. Answers tell its skills apart so well that they are judged only where the recall needs it.
"""
LANGUAGE_OPTIONS = replace(KSD_OPTIONS, max_false_abstention=0.02)
"""Of languages, whose prompts differ in a word ("What is water in Chinese?"): nothing would be written with less. Their
answers give them away.
"""
ADJUST_OPTIONS = NeuronAdjustOptions(frames=FRAMES, fraction=0.0975, draw="certain", progress=True)
"""More than the paper's 3 %, which leaves .94 of this model's arithmetic. The strongest of 17 settings that spares
Chinese, which 10 % breaks; ten of them were judged on test prompts, the last seven on calibration prompts."""
RETAIN_LIMIT = 300
"""Prompts of each skill that a guard must leave alone; there are nine such skills for each guard."""


def sources(limit: int | None = None) -> Mapping[str, Source]:
    """Each skill's calibration prompts."""
    return {skill: read_source(str(DEMO / "data" / f"{skill}.calibration.jsonl"), limit=limit) for skill in SKILLS}


def main() -> None:
    """Writes `guards/ksd-<skill>` for every forgettable skill, and `guards/na-mathematics`."""
    loaded = load_model(DEMO / "model", "cpu", "float32")
    forget, kept = sources(), sources(RETAIN_LIMIT)
    for skill in ("mathematics", "code", *LANGUAGES):
        retain = [source for other, source in kept.items() if other != skill]
        options = LANGUAGE_OPTIONS if skill in LANGUAGES else KSD_OPTIONS
        guard = calibrate_spans(loaded, [forget[skill]], retain, options)
        guard.save(DEMO / "guards" / f"ksd-{skill}", skill)
    retain = [source for other, source in kept.items() if other != "mathematics"]
    adjusted = calibrate_neuron_adjust(loaded, [forget["mathematics"]], retain, ADJUST_OPTIONS)
    adjusted.save(DEMO / "guards" / "na-mathematics", "mathematics")


if __name__ == "__main__":
    main()
