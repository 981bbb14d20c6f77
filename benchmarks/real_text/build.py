"""Builds the model that the tables on real text measure.

    python -m benchmarks.real_text.build [--data DIR] [--out DIR]

An hour on two idle cores; on busy ones OMP_WAIT_POLICY=passive keeps threads from waiting for each other in a loop.
Stopped, the same command goes on where it was.
"""

import argparse
import itertools
import json
import logging
from dataclasses import replace
from pathlib import Path

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from benchmarks.prompts.splits import data_folder
from benchmarks.real_text.corpus import documents
from benchmarks.real_text.heldout import report
from benchmarks.real_text.packing import pack, train_tokenizer
from benchmarks.real_text.train import Recipe, new_model, train
from guards.inside.transformers.loading import load_model

logger = logging.getLogger(__name__)
MODEL = Path(__file__).resolve().parent / "model"
"""Where the model is built and looked for by default; never committed."""
TOKENIZER_DOCUMENTS = 30_000


def add_model_option(parser: argparse.ArgumentParser) -> None:
    """`--model`, for commands that measure a model."""
    parser.add_argument("--model", type=Path, default=MODEL, help="a model folder; by default what this built")


def check_model(parser: argparse.ArgumentParser, model: Path) -> None:
    """Ends the command where the folder is missing."""
    if not model.is_dir():
        parser.error(f"{model}: got no such folder; run python -m benchmarks.real_text.build first, or give --model")


def _tokenizer(out: Path, data: Path, recipe: Recipe, seed: int) -> PreTrainedTokenizerFast:
    """The one in `out`, or a new one that is left there."""
    if not (out / "tokenizer.json").exists():
        texts = itertools.islice(documents(data, seed), TOKENIZER_DOCUMENTS)
        train_tokenizer(texts, recipe.pieces).save_pretrained(out)
    tokenizer: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(out)
    return tokenizer


def build(out: Path, data: Path, recipe: Recipe, seed: int) -> None:
    """Tokenizer, weights, checkpoint, and what the model predicts of held-out answers, into `out`."""
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer(out, data, recipe, seed)
    packed_RL = pack(tokenizer, documents(data, seed), recipe.steps * recipe.rows, recipe.tokens + 1)
    model = new_model(tokenizer, recipe, seed)
    train(model, packed_RL, recipe, out / "checkpoint.pt")
    model.save_pretrained(out)
    found = report(load_model(out, "cpu"), data)
    (out / "heldout.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    logger.info("held-out answers: %s", json.dumps(found))


def main() -> None:
    """Builds."""
    recipe = Recipe()
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--data", type=Path, default=data_folder())
    parser.add_argument("--out", type=Path, default=MODEL)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=recipe.steps)
    parser.add_argument("--threads", type=int, default=2, help="processor threads; part of what makes runs repeatable")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(arguments.threads)
    build(arguments.out, arguments.data, replace(recipe, steps=arguments.steps), arguments.seed)


if __name__ == "__main__":
    main()
