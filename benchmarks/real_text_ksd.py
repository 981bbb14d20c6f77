"""Key Space Detection on real text: calibrates one guard per skill, then measures them on data none of them saw.

    python -m benchmarks.real_text_ksd [--data DIR] [--model DIR] [--recall .95] [--output FILE]

Skills: mathematics (GSM8K train), code (MBPP task_id 511 to 974), and the seven languages of XQuAD (the 600 lowest
question ids). Measured on GSM8K test, MBPP task_id 11 to 510, the other 200 XQuAD questions of each language, MMLU test
and WikiText-2 test, each in the calibration's frame. Every other skill's calibration texts, MMLU dev and WikiText-2
valid are the retain set. The last line printed is one JSON object.
"""

import argparse
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.table import Table
from torch import Tensor

from guards.calibrate import tool_name
from guards.calibrate_ksd import KSDCalibration, calibrate_ksd
from guards.calibrate_options import KSDOptions
from guards.capture import TokenIds, Tokens, stream
from guards.data import Source, read_source
from guards.errors import CalibrationError
from guards.ksd import KSDGuard, cube_score
from guards.loading import LoadedModel, load_model
from guards.sites import Site
from guards.statistics import auroc
from guards.thresholds import rate_of

ROOT = Path(__file__).resolve().parent.parent
LANGUAGES = ("en", "es", "de", "zh", "hi", "vi", "ar")
FRAME = "Q: {text}\nA:"
XQUAD_LAST_TRAIN, XQUAD_FIRST_TEST = "5726eb8bf1498d1400e8efe2", "5726eb8bf1498d1400e8efe3"
"""The 600th and 601st XQuAD question ids in order, the same in every language; ids of one paragraph are adjacent."""
FORGET_LIMIT, RETAIN_LIMIT = None, 200
"""Texts of each forget (all) and retain source; the measured sets are whole but for those in TEST_LIMITS."""
TEST_LIMITS = {"mmlu": 3000, "wikitext2": 1000}


@dataclass(frozen=True)
class Skill:
    """What a skill is fitted on, and which measured set is its own. `english` texts never retain against English."""

    name: str
    train: str
    test: str
    english: bool


def skills(data: Path) -> list[Skill]:
    """The nine skills."""
    return [
        Skill("mathematics", f"{data}/gsm8k/train.jsonl#question", "gsm8k", True),
        Skill("code", f"{data}/mbpp/mbpp.jsonl?task_id=511..974#text", "mbpp", True),
        *(
            Skill(
                f"language-{lang}",
                f"{data}/xquad/{lang}.jsonl?id=..{XQUAD_LAST_TRAIN}#question",
                f"xquad-{lang}",
                lang == "en",
            )
            for lang in LANGUAGES
        ),
    ]


def tests(data: Path) -> dict[str, str]:
    """The measured sets by name."""
    return {
        "gsm8k": f"{data}/gsm8k/test.jsonl#question",
        "mbpp": f"{data}/mbpp/mbpp.jsonl?task_id=11..510#text",
        **{f"xquad-{lang}": f"{data}/xquad/{lang}.jsonl?id={XQUAD_FIRST_TEST}..#question" for lang in LANGUAGES},
        "mmlu": f"{data}/mmlu/mmlu_test.jsonl#question",
        "wikitext2": f"{data}/wikitext2/test.txt",
    }


def retain_sources(data: Path, skill: Skill, every: list[Skill]) -> list[Source]:
    """The other skills' calibration texts and two sets of general English; for English only the other languages."""
    specs = [other.train for other in every if other != skill and not (skill.name == "language-en" and other.english)]
    if skill.name != "language-en":
        specs += [f"{data}/mmlu/mmlu_dev.jsonl#question", f"{data}/wikitext2/valid.txt"]
    return [read_source(spec, limit=RETAIN_LIMIT) for spec in specs]


def score(loaded: LoadedModel, guards: Mapping[str, KSDGuard], examples: list[TokenIds]) -> dict[str, Tensor]:
    """Scores over tau [examples] of every one-cube guard at the last prompt token; one pass for all guards."""
    ratios = {name: torch.full((len(examples),), torch.nan) for name in guards}

    def consume(layer: int, key_TF: Tensor, example_T: Tensor) -> None:
        for name, guard in guards.items():
            (cube,) = guard.cubes
            if cube.layer == layer:
                score_T = cube_score(key_TF, cube.mean_F, cube.std_F.reciprocal())
                ratios[name][example_T] = score_T / cube.tau

    layers = sorted({guard.cubes[0].layer for guard in guards.values()})
    stream(loaded, Site.KEY, layers, examples, consume, tokens=Tokens.LAST, batch_tokens=None)
    return ratios


def calibrate_all(
    loaded: LoadedModel, data: Path, options: KSDOptions
) -> tuple[dict[str, KSDCalibration], dict[str, str]]:
    """Calibrations by skill, and why the others were refused."""
    done, refused = {}, {}
    every = skills(data)
    for skill in every:
        forget = [read_source(skill.train, limit=FORGET_LIMIT)]
        try:
            done[skill.name] = calibrate_ksd(loaded, forget, retain_sources(data, skill, every), options)
        except CalibrationError as error:
            refused[skill.name] = str(error)
    return done, refused


def measure(loaded: LoadedModel, data: Path, calibrations: Mapping[str, KSDCalibration]) -> list[dict[str, Any]]:
    """One row per skill and measured set: recall on the skill's own set, false abstention on the others."""
    guards = {}
    for name, calibration in calibrations.items():
        assert isinstance(calibration.guard, KSDGuard)
        guards[name] = calibration.guard
    ratios: dict[str, dict[str, Tensor]] = {}
    for test, spec in tests(data).items():
        texts = read_source(spec, limit=TEST_LIMITS.get(test)).texts
        limit = loaded.max_tokens or 1 << 30
        encoded = [loaded.codec.encode_frame(FRAME, text) for text in texts]
        ratios[test] = score(loaded, guards, [ids for ids in encoded if len(ids) <= limit]) if guards else {}
    rows = []
    for skill in skills(data):
        if skill.name not in guards:
            continue
        for test, by_guard in ratios.items():
            own = test == skill.test
            if skill.name == "language-en" and not own and not test.startswith("xquad-"):
                continue
            rate = rate_of(by_guard[skill.name] <= 1)
            rows.append(
                {
                    "forget": skill.name,
                    "test": test,
                    "examples": rate.total,
                    "recall": rate.rate if own else None,
                    "false_abstention": None if own else rate.rate,
                    "low": rate.low,
                    "high": rate.high,
                    "auroc": None if own else auroc(ratios[skill.test][skill.name], by_guard[skill.name]),
                    "layer": guards[skill.name].cubes[0].layer,
                    "tau": guards[skill.name].cubes[0].tau,
                }
            )
    return rows


def print_table(rows: list[dict[str, Any]], refused: Mapping[str, str]) -> None:
    """Recall, the worst false abstention and the lowest AUROC of every guard, then every pair that fires at all."""
    console = Console(width=120)
    table = Table("forget", "layer", "tau", "recall [95 %]", "false abstention, all sets", "worst set", "lowest AUROC")
    for name in dict.fromkeys(row["forget"] for row in rows):
        mine = [row for row in rows if row["forget"] == name]
        (own,) = [row for row in mine if row["recall"] is not None]
        others = [row for row in mine if row["recall"] is None]
        total = sum(row["examples"] for row in others)
        fired = sum(row["false_abstention"] * row["examples"] for row in others)
        worst = max(others, key=lambda row: row["false_abstention"])
        lowest = min(others, key=lambda row: row["auroc"])
        table.add_row(
            name,
            str(own["layer"]),
            f"{own['tau']:.2f}",
            f"{own['recall']:.3f} [{own['low']:.3f}, {own['high']:.3f}]",
            f"{fired / total:.4f} of {total}",
            f"{worst['false_abstention']:.3f} {worst['test']}",
            f"{lowest['auroc']:.4f} {lowest['test']}",
        )
    console.print(table)
    for name, reason in refused.items():
        console.print(f"{name}: refused: {reason}", markup=False, soft_wrap=True)


def main() -> None:
    """Calibrates, measures, prints, and writes the result file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    default = os.environ.get("SKILLGUARD_DATA", str(ROOT.parent / "shared" / "data"))
    parser.add_argument("--data", type=Path, default=Path(default))
    parser.add_argument("--model", type=Path, help="model folder (default: weights/realtext5m of the data)")
    parser.add_argument("--recall", type=float, default=KSDOptions().recall)
    parser.add_argument("--layer", type=int)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "real_text_ksd.json")
    args = parser.parse_args()
    started = time.monotonic()
    model = args.model or args.data / "weights" / "realtext5m"
    loaded = load_model(model)
    options = KSDOptions(frames=(FRAME,), recall=args.recall, layer=args.layer, progress=True)
    calibrations, refused = calibrate_all(loaded, args.data, options)
    rows = measure(loaded, args.data, calibrations)
    print_table(rows, refused)
    result = {
        "benchmark": "real_text_ksd",
        "model": model.name if model.name != "hf" else model.parent.name,
        "dtype": loaded.identity.dtype,
        "device": str(loaded.device),
        "recall_asked": options.recall,
        "max_false_abstention": options.max_false_abstention,
        "versions": {"tool": tool_name(), "torch": torch.__version__, "transformers": transformers.__version__},
        "seconds": round(time.monotonic() - started),
        "refused": refused,
        "calibrated": {
            name: {
                "recall": calibration.frames[0].recall.model_dump(),
                "false_abstention": calibration.frames[0].false_abstention.model_dump(),
                "by_layer": [[r.fit.cube.layer, r.reported_auroc] for r in calibration.frames[0].layers],
                "warnings": list(calibration.warnings),
            }
            for name, calibration in calibrations.items()
        },
        "rows": rows,
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
