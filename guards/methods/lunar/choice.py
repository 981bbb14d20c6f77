"""Which layer is changed: the one under whose change the model answers as is wanted, on prompts that nothing was fitted
on.

Suffixes: F feed-forward width (d_ff), D the residual stream's (d_model).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from guards.calibration.activations import TokenIds
from guards.calibration.corpus import SIDES, Share, Side
from guards.errors import CalibrationError
from guards.methods.lunar.answers import Answers, Embedding, Likeness, Refusal, embedded
from guards.methods.lunar.entry import LUNAR
from guards.methods.lunar.guard import LunarGuard, redirection
from guards.methods.lunar.job import Job
from guards.methods.lunar.options import LunarOptions

QUOTED = 3
"""Answers of a kind that a report quotes."""
_ANSWERED = (Share.THRESHOLD, Share.REPORT)


@dataclass(frozen=True, kw_only=True)
class Solved:
    """One layer's change. `w_F` and `ridge` are of the solve; `direction_D` and `usual` as in `Factors`.

    `said`: the mean of w.k over held-out tokens of each side, 1 and 0 where it is as fitted.
    """

    layer: int
    direction_D: Tensor
    usual: float
    w_F: Tensor
    ridge: float
    said: Mapping[Side, float]

    def guard(self, options: LunarOptions) -> LunarGuard:
        """It as a guard."""
        factors = redirection(self.direction_D, self.w_F, strength=options.strength, usual=self.usual)
        return LunarGuard({self.layer: factors}, options.reference, options.strength, self.ridge)


@dataclass(frozen=True, kw_only=True)
class Candidate(Solved):
    """A change with what the model answers under it at the threshold part; `quoted` are answers to forget prompts."""

    likeness: Likeness
    quoted: tuple[str, ...]


@dataclass(frozen=True)
class Compared:
    """Answers to one part's prompts without a change, and with the chosen one."""

    unchanged: Likeness
    changed: Likeness

    def way(self, own: float) -> float:
        """Share of the way that forget answers went towards `own`, as alike as answers to reference prompts are.

        0 where there is none to go.
        """
        whole = own - self.unchanged.alike
        return (self.changed.alike - self.unchanged.alike) / whole if whole > 0 else 0.0


class Hearing:
    """What a job's prompts are answered, and how alike that is. Begins with the unchanged model.

    `refusal` is what answers are compared with. `quoted`: some of the unchanged model's, by what was asked.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._embedding = Embedding(job.model, job.opening(), job.options.batch_tokens)
        asked = [job.asked_reference(), *(job.asked(side, share) for share in _ANSWERED for side in SIDES)]
        reference, *others = embedded(self._embedding, *map(job.write, asked))
        self._unchanged = dict(zip(_ANSWERED, zip(others[::2], others[1::2], strict=True), strict=True))
        forget, retain = self._unchanged[Share.THRESHOLD]
        self.refusal = Refusal(reference, forget, retain)
        self.quoted = {"reference": self._some(reference), "forget": self._some(forget)}

    def candidates(self, solved: Sequence[Solved]) -> list[Candidate]:
        """Changes with what is said under each. An engine that has to start for one is started once for each.

        Those under which the model is not finite are left out. Raises CalibrationError where no other is left.
        """
        written = [(each, said) for each in solved if (said := self._write(Share.THRESHOLD, each)) is not None]
        if not written:
            raise self._not_finite(solved)
        answers = embedded(self._embedding, *(ids for _, said in written for ids in said))
        return [
            Candidate(**vars(each), likeness=self._judge(Share.THRESHOLD, forget, retain), quoted=self._some(forget))
            for (each, _), forget, retain in zip(written, answers[::2], answers[1::2], strict=True)
        ]

    def unchanged(self, share: Share) -> Likeness:
        """What is said at a part without a change."""
        return self._judge(share, *self._unchanged[share])

    def reported(self, chosen: Solved) -> Compared:
        """What is said at the report part. Raises CalibrationError where the model is not finite there."""
        if (said := self._write(Share.REPORT, chosen)) is None:
            raise self._not_finite([chosen])
        answers = embedded(self._embedding, *said)
        return Compared(self.unchanged(Share.REPORT), self._judge(Share.REPORT, *answers))

    def _write(self, share: Share, change: Solved) -> list[list[TokenIds]] | None:
        """Answers of both sides under a change, None where the model is not finite."""
        asked = {side: self._job.asked(side, share) for side in SIDES}
        with self._job.model.guarded(LUNAR, change.guard(self._job.options)):
            if self._job.last.at_the_end(asked) is None:  # what is written then is made up
                return None
            return [self._job.write(of) for of in asked.values()]

    def _not_finite(self, changes: Sequence[Solved]) -> CalibrationError:
        options, layers = self._job.options, ", ".join(str(each.layer) for each in changes)
        other = "" if options.layer is None else ", name another `layer`"
        return CalibrationError(
            f"the model is not finite in this dtype under the change of layer {layers}: lower `strength` (got "
            f"{options.strength:g}){other}, or calibrate in a dtype of a wider range (bfloat16 or float32)"
        )

    def _judge(self, share: Share, forget: Answers, retain: Answers) -> Likeness:
        return self.refusal.judge(forget, retain, self._unchanged[share][1])

    def _some(self, answers: Answers) -> tuple[str, ...]:
        return tuple(map(self._job.model.codec.decode, answers.ids[:QUOTED]))
