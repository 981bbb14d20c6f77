"""What a cell's answers come to."""

import statistics
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.asked.asking import TOO_LONG, Reply
from benchmarks.prompts.items import Role
from guards.calibration.thresholds import rate_of
from guards.core.verdict import Stage

Row = dict[str, Any]


def row(cell: str, role: Role, replies: Sequence[Reply], *, written: bool = False) -> Row:
    """How many were refused, with an exact interval of 95 %.

    The rate is recall where the role is forget, false abstention where it is retain. `written`: answers were longer
    than a token, so say how many were refused at the prompt, while they were written, and after how many tokens.
    A prompt that is too long for the model counts apart.
    """
    judged = [reply for reply in replies if reply.finish_reason != TOO_LONG]
    rate = rate_of(torch.tensor([reply.refused for reply in judged], dtype=torch.bool))
    found: Row = {
        "cell": cell,
        "role": role.value,
        "hits": rate.hits,
        "total": rate.total,
        "rate": round(rate.rate, 4),
        "low": round(rate.low, 4),
        "high": round(rate.high, 4),
    }
    if len(judged) < len(replies):
        found["too_long"] = len(replies) - len(judged)
    if written:
        after = [reply.tokens for reply in judged if reply.refused and reply.stage == Stage.GENERATION.value]
        found |= {"at_prompt": rate.hits - len(after), "while_written": len(after)}
        if after:
            found |= {"tokens_median": statistics.median(after), "tokens_most": max(after)}
    return found
