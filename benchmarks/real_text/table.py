"""Key Space Detection on real text: a guard for every skill, measured on prompts that nothing was fitted on.

    python -m benchmarks.real_text.table [--model DIR] [--data DIR] [--variants paper cube default]

Forgets mathematics (GSM8K), code (MBPP) and each language of XQuAD, one at a time, by every variant (`variants.py`).
Recall is of the skill's own test prompts. MMLU's mathematics and computing subjects need the skill that is forgotten:
what is refused of them is recall in other wordings, no false abstention, and stands in rows of their own.
Also measured is what the model predicts of held-out answers behind each guard (`heldout.py` says how an abstention
counts). Writes `real_text.json`, `.md` and a matrix of languages for each variant under `results/`; a run that was
stopped leaves the variants it had finished in `real_text.partial.json`.
"""

import argparse
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from torch import Tensor

from benchmarks.prompts.splits import data_folder
from benchmarks.real_text.build import add_model_option, check_model
from benchmarks.real_text.heldout import ANSWERS, DOCUMENTS, Document, Predicted, documents, predict
from benchmarks.real_text.keys import CachedKeys
from benchmarks.real_text.ratios import Detector, ratios
from benchmarks.real_text.rows import Row, detection_rows, heldout_rows
from benchmarks.real_text.sheets import Sheet, heldout_sheet, matrix, matrix_sheet, shortfalls, summary_sheet
from benchmarks.real_text.skills import FRAME, MEASURED, SKILLS, forget_source, retain_sources
from benchmarks.real_text.variants import VARIANTS, Variant
from benchmarks.report import RESULTS, keep, publish
from guards.calibration.activations import TokenIds
from guards.core.version import tool_name
from guards.errors import CalibrationError
from guards.inside.transformers.loading import load_model
from server.evaluation.figures import LANGUAGES, share_matrix

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Material:
    """What every variant is measured on: prompts by measured set, documents and the bare model's predictions."""

    prompts: Mapping[str, list[TokenIds]]
    documents: Mapping[str, list[Document]]
    unguarded: Mapping[str, Predicted]


def read_material(model: CachedKeys, data: Path) -> Material:
    """Encodes and predicts; prompts longer than the model's context are left out."""
    limit = model.max_tokens or 1 << 30
    encoded = {
        measured.name: [model.codec.encode_frame(FRAME, text) for text in measured.source(data).texts]
        for measured in MEASURED
    }
    held_out = {name: documents(data, model.codec, name, DOCUMENTS, model.max_tokens) for name in ANSWERS}
    return Material(
        {name: [ids for ids in prompts if len(ids) <= limit] for name, prompts in encoded.items()},
        held_out,
        {name: predict(model.loaded, every) for name, every in held_out.items()},
    )


def calibrate_all(model: CachedKeys, data: Path, variant: Variant) -> tuple[dict[str, Detector], dict[str, list[str]]]:
    """Guards by skill, and what their calibrations warn of, or why there is none."""
    guards, notes = {}, {}
    for skill in SKILLS:
        try:
            forget, retain = forget_source(data, skill), retain_sources(data, skill)
            fitted = variant.calibrate(model, [forget], retain, variant.frames)
        except CalibrationError as error:
            notes[skill.name] = [f"refused: {error}"]
            continue
        guards[skill.name], notes[skill.name] = fitted.guard, list(fitted.warnings)
        logger.info("%s: calibrated", skill.name)
    return guards, notes


def measure(model: CachedKeys, guards: Mapping[str, Detector], material: Material) -> tuple[list[Row], list[Row]]:
    """Rows of detection and rows of held-out prediction."""
    by_set = {name: ratios(model, guards, prompts) for name, prompts in material.prompts.items()}
    by_data_set = {
        name: ratios(model, guards, [document.prompt for document in every])
        for name, every in material.documents.items()
    }
    vocabulary = model.loaded.model.config.vocab_size
    detection: list[Row] = []
    held_out: list[Row] = []
    for skill in SKILLS:
        if skill.name in guards:
            own_scores: dict[str, Tensor] = {name: found[skill.name] for name, found in by_set.items()}
            detection += detection_rows(skill, own_scores)
            refused = {name: found[skill.name] <= 1 for name, found in by_data_set.items()}
            held_out += heldout_rows(skill, material.unguarded, refused, vocabulary)
    return detection, held_out


def sheets(name: str, detection: list[Row], held_out: list[Row]) -> list[Sheet]:
    """What a variant's rows say."""
    return [
        summary_sheet(f"{name}: prompts refused", detection),
        matrix_sheet(f"{name}: questions refused, by language", detection),
        heldout_sheet(f"{name}: next-token accuracy of held-out answers, over that without a guard", held_out),
    ]


def main() -> None:
    """Calibrates, measures, prints, and writes the result files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=data_folder())
    add_model_option(parser)
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    args = parser.parse_args()
    check_model(parser, args.model)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    started = time.monotonic()
    model = CachedKeys(load_model(args.model))
    material = read_material(model, args.data)
    console = Console(width=160)
    rows: list[Row] = []
    held_out: list[Row] = []
    notes, short, texts = {}, {}, []
    for name in args.variants:
        logger.info("variant %s", name)
        guards, notes[name] = calibrate_all(model, args.data, VARIANTS[name])
        detected, predicted = measure(model, guards, material)
        for sheet in sheets(name, detected, predicted):
            sheet.show(console)
            texts.append(sheet.markdown)
        short[name] = list(shortfalls(detected))
        for line in short[name]:
            console.print(f"{name}: {line}", markup=False)
        rows += [{"variant": name, **row} for row in detected]
        held_out += [{"variant": name, **row} for row in predicted]
        RESULTS.mkdir(exist_ok=True)
        picture = share_matrix(matrix(detected), LANGUAGES, LANGUAGES, f"{name}: share of questions refused")
        (RESULTS / f"real_text.{name}.png").write_bytes(picture)
        keep("real_text", rows, model=args.model.name, held_out=held_out, short=short, notes=notes)
    (RESULTS / "real_text.md").write_text("\n".join(texts), encoding="utf-8")
    publish(
        "real_text",
        rows,
        model=args.model.name,
        weights=model.identity.weights_sha256,
        tool=tool_name(),
        seconds=round(time.monotonic() - started),
        unguarded={
            name: {"accuracy": found.accuracy, "perplexity": found.perplexity}
            for name, found in material.unguarded.items()
        },
        held_out=held_out,
        short=short,
        notes=notes,
    )


if __name__ == "__main__":
    main()
