"""How near answers are to what the model says where it cannot answer: by this the paper chooses the layer.

Suffixes: E answers, D the residual stream's width.

The paper embeds answers with a sentence encoder, and compares them with refusals by cosine. Here the model embeds them
itself, so that nothing has to be brought, in whatever language it answers: an answer is the mean, over its tokens, of
the residual stream after the unchanged model's middle block, which reads the answer alone, without what was asked. Such
states have most of their direction in common, so the mean over the unchanged model's answers is taken out first.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from guards.calibration.activations import Activations, Pass, TokenIds, Tokens
from guards.calibration.statistics import auroc
from guards.errors import CalibrationError
from guards.model.sites import Site


@dataclass(frozen=True)
class Embedding:
    """Of answers, each read behind `lead`: a text's first token alone has a state unlike all others."""

    model: Activations
    lead: TokenIds
    batch_tokens: int | None = None

    @property
    def layer(self) -> int:
        """The middle block."""
        return self.model.identity.layers // 2

    def of(self, answers: Sequence[TokenIds]) -> Tensor:
        """float64 [E, D] on the host, NaN for an answer without tokens. Raises CalibrationError."""
        sum_ED = torch.zeros(len(answers), self.model.width(Site.RESIDUAL), dtype=torch.float64)
        written = [index for index, answer in enumerate(answers) if answer]
        index_E = torch.tensor(written)

        def add(_: int, x_TD: Tensor, example_T: Tensor) -> None:
            sum_ED.index_add_(0, index_E[example_T.cpu()], x_TD.double().cpu())

        wanted = Pass(Site.RESIDUAL, (self.layer,), Tokens.ALL, (len(self.lead), 0), self.batch_tokens)
        self.model.stream(wanted, [(*self.lead, *answers[index]) for index in written], add)
        if not bool(torch.isfinite(sum_ED).all()):
            raise CalibrationError("the residual stream is not finite in this dtype on the model's own answers")
        return sum_ED / torch.tensor([len(answer) for answer in answers], dtype=torch.float64)[:, None]


@dataclass(frozen=True)
class Answers:
    """Answers to prompts of one kind, and what they are embedded as."""

    ids: Sequence[TokenIds]
    at_ED: Tensor


def embedded(embedding: Embedding, *of: Sequence[TokenIds]) -> list[Answers]:
    """Answers of several kinds, in one pass."""
    at = torch.split(embedding.of([answer for answers in of for answer in answers]), [len(answers) for answers in of])
    return [Answers(answers, each_ED) for answers, each_ED in zip(of, at, strict=True)]


@dataclass(frozen=True)
class Likeness:
    """What a change makes of answers: mean cosines of both sides, each 1 at best and 0 where two answers have nothing
    in common.

    `alike`: forget answers, to the mean answer to reference prompts. `kept`: retain answers, each to what the unchanged
    model says there.
    """

    alike: float
    kept: float

    @property
    def deviation(self) -> float:
        """0 where all is as wanted; after the paper's Deviation Score, of cosines in the place of recalls."""
        return math.hypot(1 - self.alike, 1 - self.kept)


class Refusal:
    """The unchanged model's answers to reference prompts, by which others are judged.

    `own`: how alike they are themselves, each to the mean of the others. `told`: AUROC of that against the unchanged
    answers to forget prompts: .5 where the comparison says nothing.
    """

    def __init__(self, reference: Answers, forget: Answers, retain: Answers) -> None:
        """Of the unchanged model. Raises CalibrationError where it has no two answers to reference prompts."""
        means = [_written(each.at_ED).mean(dim=0) for each in (reference, forget, retain) if any(each.ids)]
        own_ED = _written(reference.at_ED)
        if len(own_ED) < 2:
            raise CalibrationError(
                f"got {len(own_ED)} answers to {len(reference.ids)} reference prompts, wanted 2 or more: the model "
                "ends its answer at once there; take another `reference` or name a `layer`"
            )
        self._centre_D = torch.stack(means).mean(dim=0)
        own_ED = own_ED - self._centre_D
        others_ED = (own_ED.sum(dim=0) - own_ED) / (len(own_ED) - 1)
        self._mean_D = own_ED.mean(dim=0)
        own_E = functional.cosine_similarity(own_ED, others_ED)
        self.own = float(own_E.mean())
        self.told = auroc(-own_E, -self._to_mean(forget))  # a small score is a refusal's

    def judge(self, forget: Answers, retain: Answers, unchanged: Answers) -> Likeness:
        """`unchanged`: what the unchanged model answers to the same retain prompts."""
        return Likeness(float(self._to_mean(forget).mean()), float(self._same(retain, unchanged).mean()))

    def _to_mean(self, answers: Answers) -> Tensor:
        """Cosines, float64 [E], 0 for an answer without tokens, which says nothing."""
        cosine_E = functional.cosine_similarity(answers.at_ED - self._centre_D, self._mean_D[None])
        return cosine_E.nan_to_num(0.0)

    def _same(self, answers: Answers, others: Answers) -> Tensor:
        """The same, of each answer with its other; 1 where both are without tokens."""
        cosine_E = functional.cosine_similarity(answers.at_ED - self._centre_D, others.at_ED - self._centre_D)
        equal_E = torch.tensor([one == other for one, other in zip(answers.ids, others.ids, strict=True)])
        return torch.where(equal_E, 1.0, cosine_E.nan_to_num(0.0))


def _written(at_ED: Tensor) -> Tensor:
    """Those of answers that have tokens."""
    return at_ED[~at_ED.isnan().any(dim=1)]
