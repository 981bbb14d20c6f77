"""ESU's figure 4 for the demo: relative performance under Neuron Adjust, Selective Pruning and Key Space Detection.

    python -m benchmarks.figure4 [--limit N] [--run FOLDER]

Forgets mathematics and code with the shipped detectors and with guards calibrated here: Neuron Adjust at the paper's
0.5, 1.5 and 3 % of neurons, and Selective Pruning of PRUNED_PERCENTS of the feed-forward neurons in one step. Asks
held-out prompts of mathematics, code and facts (for the paper's GSM8K, MBPP and MMLU) through `skillguard evaluate`'s
own code.
Writes `results/figure4.json` and `results/figure4.png`; a stopped run goes on where --run is given.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from artifacts.demo.guards import DEMO, FRAMES, sources
from benchmarks.report import RESULTS, publish
from guards.calibration.finished import Calibration
from guards.calibration.sources import Source
from guards.inside.transformers.loading import LoadedModel, load_model
from guards.methods.neuron_adjust.calibrate import calibrate as calibrate_neuron_adjust
from guards.methods.neuron_adjust.options import NeuronAdjustOptions
from guards.methods.selective_pruning.calibrate import calibrate as calibrate_pruning
from guards.methods.selective_pruning.options import PruningOptions
from server.engines.options import EmbeddedOptions
from server.evaluation.arms import engine_arms
from server.evaluation.evaluate import Evaluation, evaluate
from server.evaluation.figures import figures
from server.evaluation.options import EvaluationOptions
from server.evaluation.suites import read_suites
from server.evaluation.summary import print_summary

SKILLS = ("mathematics", "code", "facts")
FORGOTTEN = ("mathematics", "code")
PERCENTS = (0.5, 1.5, 3.0)
PRUNED_PERCENTS = (0.1, 0.5, 1.5)
"""ESU prunes 1.5 % for mathematics. Its 0.01 % for code is a third of a neuron here; 0.1 % are three."""
FORGET_LIMIT, RETAIN_LIMIT = 400, 100
"""Prompts of the forgotten skill, and of each of the nine others."""


def make(
    loaded: LoadedModel, method: str, percent: float, forget: Sequence[Source], retain: Sequence[Source]
) -> Calibration:
    """A guard of one share of the neurons."""
    if method == "na":
        options = NeuronAdjustOptions(frames=FRAMES, fraction=percent / 100, progress=True)
        return calibrate_neuron_adjust(loaded, forget, retain, options)
    return calibrate_pruning(
        loaded, forget, retain, PruningOptions(frames=FRAMES, fraction=percent / 100, progress=True)
    )


def calibrate(folder: Path) -> list[Path]:
    """The guards in the figure's order; those that are not shipped and `folder` lacks are made there."""
    forget, kept = sources(FORGET_LIMIT), sources(RETAIN_LIMIT)
    loaded = None
    found = []
    for skill in FORGOTTEN:
        retain = [source for other, source in kept.items() if other != skill]
        for method, percents in (("na", PERCENTS), ("sp", PRUNED_PERCENTS)):
            for percent in percents:
                found.append(folder / f"{method}-{skill}-{percent}")
                if found[-1].exists():
                    continue
                loaded = loaded or load_model(DEMO / "model", "cpu", "float32")
                make(loaded, method, percent, [forget[skill]], retain).save(found[-1], skill)
        found.append(DEMO / "guards" / f"ksd-{skill}")
    return found


def main() -> None:
    """Calibrates, asks, prints, and writes the result files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, help="prompts per skill (default: all)")
    parser.add_argument("--run", type=Path, help="folder of guards and answers (default: a temporary one)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        run = args.run or Path(scratch)
        model = EmbeddedOptions(
            model=str(DEMO / "model"), served_name="skillguard-demo", artifacts=tuple(calibrate(run / "guards"))
        )
        options = EvaluationOptions(limit=args.limit)
        suites = read_suites([f"prompts={DEMO / 'data' / f'{skill}.test.jsonl'}" for skill in SKILLS], [], options)
        evaluation = Evaluation(engine_arms(model, together=False), suites, options)
        results = evaluate(evaluation, run / "answers", plots=True)
        print_summary(results, run / "answers")
    rows = [
        {
            "guard": guard["guard"],
            "skill": label,
            "relative": round(cell["relative"]["value"], 4),
            "relative_interval": [round(cell["relative"][bound], 4) for bound in ("low", "high")],
            "abstained": round(cell["abstained"]["rate"], 4),
        }
        for guard in results["guards"]
        for label, cell in guard["suites"].items()
    ]
    publish("figure4", rows, settings=results["settings"])
    (RESULTS / "figure4.png").write_bytes(figures(results)["relative.png"])


if __name__ == "__main__":
    main()
