"""What a guard says along a prompt. Suffix: T tokens."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PartTrace:
    """What a part reads at each token of a prompt, as if the prompt ended there.

    `share_T`: which share each token has of what it takes to fire, None of tokens that do not count. Over the span
    their sum is 1 or more where the part fires at the prompt's end. `span`: the first and the last token of what is
    judged at the prompt's end, None where nothing speaks for the skill. Both are None where a part does not tell.
    """

    label: str
    tau: float
    score_T: tuple[float, ...]
    share_T: tuple[float | None, ...] | None = None
    span: tuple[int, int] | None = None
