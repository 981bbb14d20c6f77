"""What a load's answers come to."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from benchmarks.load.client import Answer

ABSTAINED = "content_filter"


def spread(seconds: Iterable[float]) -> dict[str, float] | None:
    """Milliseconds that half, and 95 and 99 of a hundred, stay within. None of nothing."""
    values = list(seconds)
    if not values:
        return None
    return {f"p{share}": round(1000 * float(np.percentile(values, share)), 2) for share in (50, 95, 99)}


def seconds_of(answers: Sequence[Answer]) -> float:
    """From the time of the first request to the end of the last answer."""
    return max(each.last for each in answers) - min(each.due for each in answers)


def tokens_per_second(answers: Sequence[Answer]) -> float:
    """Tokens of all answers together."""
    return sum(each.tokens for each in answers) / seconds_of(answers)


def requests_per_second(answers: Sequence[Answer]) -> float:
    """Answers that ended, withheld ones too."""
    return len(answers) / seconds_of(answers)


def figures(answers: Sequence[Answer], *, streamed: bool = True) -> dict[str, Any]:
    """Throughput; times of answers and of abstentions apart."""
    told = [each for each in answers if each.finish != ABSTAINED]
    withheld = [each for each in answers if each.finish == ABSTAINED]
    times = {
        "first_token_ms": spread(each.first - each.due for each in told),
        "per_token_ms": spread((each.last - each.first) / (each.tokens - 1) for each in told if each.tokens > 1),
    }
    return {
        "requests": len(answers),
        "abstained": len(withheld),
        "tokens": sum(each.tokens for each in answers),
        "requests_per_second": round(requests_per_second(answers), 2),
        "tokens_per_second": round(tokens_per_second(answers), 1),
        **(times if streamed else {}),
        "answer_ms": spread(each.seconds for each in told),
        "abstention_ms": spread(each.seconds for each in withheld),
    }
