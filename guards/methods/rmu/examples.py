"""The examples of a training, dealt, and from which token on each is looked at."""

from collections.abc import Mapping, Sequence

from guards.calibration.corpus import Corpus, Share, Side, frame_tokens
from guards.calibration.last_tokens import evenly
from guards.calibration.tuning import Example
from guards.errors import CalibrationError
from guards.methods.rmu.training import Sides

DEAL = (Share.FIT, Share.FIT, Share.FIT, Share.THRESHOLD, Share.FIT, Share.FIT, Share.FIT, Share.REPORT)
"""Of both sides: six of eight are trained on, one chooses the rank, and on one the recorded losses are measured."""
MEASURED = 32
"""Examples of each side that are measured on at most, evenly spaced over sources and frames."""


def dealt_examples(
    corpora: Sequence[Corpus], *, length: int, last_only: bool, seed: int, deal: Sequence[Share] = DEAL
) -> Mapping[Share, Sides]:
    """Both sides' first `length` tokens by share, in all frames.

    Forget examples are looked at after what all examples of a frame begin with, or at the last token alone; retain
    examples from the first token on. What all begin with is one context on both sides: it cannot be moved and kept.
    Raises CalibrationError where a share would be empty.
    """
    found: dict[tuple[Share, Side], list[Example]] = {}
    for frame in corpora[0].encoded:
        leading, _ = frame_tokens([ids for corpus in corpora for ids in corpus.encoded[frame]])
        for corpus in corpora:
            for share, members in corpus.deal(deal, seed).items():
                for member in members:
                    ids = corpus.encoded[frame][member][:length]
                    first = len(ids) - 1 if last_only else min(max(leading, 1), len(ids) - 1)
                    example = Example(ids, first if corpus.role == "forget" else 0)
                    found.setdefault((share, corpus.role), []).append(example)
    for corpus in corpora:
        if len(corpus.texts) < len(deal):
            fit, rank, measured = map(deal.count, Share)
            raise CalibrationError(
                f"got {len(corpus.texts)} {corpus.role} examples, wanted at least {len(deal)}: {fit} to train on, "
                f"{rank} to choose the rank by, {measured} to measure"
            )
    return {
        share: Sides(_some(found[share, "forget"], share), _some(found[share, "retain"], share))
        for share in dict.fromkeys(deal)
    }


def _some(examples: Sequence[Example], share: Share) -> tuple[Example, ...]:
    return tuple(examples if share is Share.FIT else evenly(examples, MEASURED))
