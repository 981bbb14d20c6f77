"""Measures a built model: greedy exact match per skill, and how well key vectors tell the skills apart."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from artifacts.demo.build.files import read_rows
from artifacts.demo.build.inference import greedy_answers
from artifacts.demo.build.rows import SKILLS, Row, Split, exact_match
from artifacts.demo.build.separation import separation_table

_SHOWN_MISTAKES = 4


def report(out: Path) -> str:
    """Both tables, as text."""
    tokenizer = AutoTokenizer.from_pretrained(out / "model", trust_remote_code=False)
    model = AutoModelForCausalLM.from_pretrained(out / "model", dtype=torch.float32, trust_remote_code=False).eval()
    rows = {
        split: {skill: read_rows(out / "data" / f"{skill}.{split}.jsonl") for skill in SKILLS}
        for split in (Split.CALIBRATION, Split.TEST)
    }
    lines = ["exact match on test rows: chat frame, completion frame; then mistakes in the chat frame"]
    for skill, tests in rows[Split.TEST].items():
        chat = _mistakes(model, tokenizer, tests, completion=False)
        plain = _mistakes(model, tokenizer, tests, completion=True)
        lines.append(f"{skill:12} {1 - len(chat) / len(tests):.3f} {1 - len(plain) / len(tests):.3f}")
        lines += chat[:_SHOWN_MISTAKES]
    return "\n".join([*lines, "", separation_table(model, tokenizer, rows[Split.CALIBRATION], rows[Split.TEST])])


def _mistakes(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, rows: list[Row], *, completion: bool
) -> list[str]:
    """One line for each row answered wrongly. Rows are sorted by length so that batches hardly pad."""
    rows = sorted(rows, key=lambda row: len(row.prompt))
    answers = greedy_answers(model, tokenizer, [row.prompt for row in rows], completion=completion)
    return [
        f"    {row.prompt!r}: {answer!r}, expected {row.answer!r}"
        for row, answer in zip(rows, answers, strict=True)
        if not exact_match(answer, row.answer)
    ]
