"""`python -m artifacts.demo.build`: writes data and tokenizer, trains the model, prints how good it is."""

from __future__ import annotations

import argparse
import itertools
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from artifacts.demo.build.check import report
from artifacts.demo.build.corpus import conversations
from artifacts.demo.build.files import write_model, write_rows
from artifacts.demo.build.rows import SKILLS, Split
from artifacts.demo.build.skills import prompts
from artifacts.demo.build.tokenizer import train_tokenizer
from artifacts.demo.build.train import Recipe, new_model, train

CALIBRATION_ROWS = 1000
TEST_ROWS = 240
VOCABULARY = 3072
TOKENIZER_CONVERSATIONS = 30_000


def main() -> None:
    """Build into `--out`; with `--check`, only measure the model that is there."""
    recipe = Recipe()
    parser = argparse.ArgumentParser(prog="python -m artifacts.demo.build", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1], help="folder for model/ and data/")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=recipe.steps)
    parser.add_argument("--minutes", type=float, help="end training by then, at the price of repeatability")
    parser.add_argument("--threads", type=int, default=2, help="processor threads; part of what makes runs repeatable")
    parser.add_argument("--check", action="store_true", help="measure the model in --out and build nothing")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(arguments.threads)
    if not arguments.check:
        build(arguments.out, replace(recipe, steps=arguments.steps, minutes=arguments.minutes), arguments.seed)
    print(report(arguments.out))


def build(out: Path, recipe: Recipe, seed: int) -> None:
    """Data first, then the tokenizer, then the weights."""
    tests = {skill: prompts(skill, Split.TEST, TEST_ROWS, seed) for skill in SKILLS}
    held_out = {row.prompt for rows in tests.values() for row in rows}
    for skill, rows in tests.items():
        write_rows(out / "data" / f"{skill}.test.jsonl", rows)
        calibration = prompts(skill, Split.CALIBRATION, CALIBRATION_ROWS, seed, without=held_out)
        write_rows(out / "data" / f"{skill}.calibration.jsonl", calibration)
    tokenizer = train_tokenizer(_texts(seed, held_out), VOCABULARY)
    model = new_model(tokenizer, seed)
    write_model(out / "model", model, tokenizer)
    train(
        model,
        tokenizer,
        recipe,
        seed,
        held_out,
        lambda trained: write_model(out / "model", trained, tokenizer),
    )


def _texts(seed: int, held_out: set[str]) -> Iterator[str]:
    """Answers are given with and without the space that precedes them in the completion frame."""
    for conversation in itertools.islice(conversations(seed, held_out), TOKENIZER_CONVERSATIONS):
        for _, row in conversation.turns:
            yield from (row.prompt, row.answer, f" {row.answer}")


if __name__ == "__main__":
    main()
