"""Rebuilds the demo's guards from its calibration prompts: `python -m artifacts.demo.guards`.

The same calibration that `skillguard calibrate` runs, with the options below; some minutes on one core. The
last digits, and so the bytes, depend on the number of threads; those here are of one (OMP_NUM_THREADS=1).
"""

from collections.abc import Mapping
from pathlib import Path

from artifacts.demo.build.rows import LANGUAGES, SKILLS
from guards.calibration.sources import Source, read_source
from guards.inside.transformers.loading import load_model
from guards.methods.cube.calibrate import calibrate as calibrate_cubes
from guards.methods.cube.options import CubeOptions
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
LANGUAGE_OPTIONS = CubeOptions(frames=FRAMES, progress=True)
"""The languages' prompts differ in a word ("What is water in Chinese?"), which spans find in half of them at best. The
model's training told its last layer's keys apart at the last token, which is what a cube looks at.
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
        guard = (
            calibrate_cubes(loaded, [forget[skill]], retain, LANGUAGE_OPTIONS)
            if skill in LANGUAGES
            else calibrate_spans(loaded, [forget[skill]], retain, KSD_OPTIONS)
        )
        guard.save(DEMO / "guards" / f"ksd-{skill}", skill)
    retain = [source for other, source in kept.items() if other != "mathematics"]
    adjusted = calibrate_neuron_adjust(loaded, [forget["mathematics"]], retain, ADJUST_OPTIONS)
    adjusted.save(DEMO / "guards" / "na-mathematics", "mathematics")


if __name__ == "__main__":
    main()
