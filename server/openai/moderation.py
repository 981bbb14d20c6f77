"""OpenAI's moderation: POST /v1/moderations, and the result beside an answer that a request's `moderation` asks for.

A category is a skill, `skill/mathematics`, and one guard of several that fires is enough for it. Only what is enforced
for the caller flags. `category_score_kinds` says what the number of each category is, from 0 to 1:

    verdict    1 where the category is flagged and 0 where not: all that callers are told who are no operators, since a
               score would tell how far a text is from passing
    quantile   the share of texts without the skill, among those of the guard's calibration, that score further from
               firing, of the guard where it is largest; where every guard of the skill has a table of quantiles
    threshold  tau / (tau + score) of the guard nearest to firing: 0.5 at its threshold, more where it fires, 1 where
               the score is 0 or less; where some guard has no table
The last two rise with the evidence, and are no probability of the skill.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from guards.core.policy import Policy
from guards.core.verdict import GuardKind, GuardMode, Stage, Verdict
from server.engines.base import GuardInfo
from server.engines.events import Finish, GuardScore
from server.judging import Judged, judged
from server.openai.body import Body, NonEmptyText, Text, encodable
from server.openai.invalid import refused_option

MAX_TEXTS = 1024
"""Most texts of one request; each is a forward pass."""


class ScoreKind(StrEnum):
    """What the number of a category is."""

    VERDICT = "verdict"
    QUANTILE = "quantile"
    THRESHOLD = "threshold"


def _inputs(value: object) -> object:
    """OpenAI's three forms as a tuple of texts: a string, a list of strings, a list of parts, which are one text."""
    if isinstance(value, str):
        return (encodable(value),)
    if isinstance(value, list) and value:
        if all(isinstance(each, str) for each in value):
            return tuple(encodable(each) for each in value)
        if all(isinstance(each, dict) and each.get("type") == "text" and _is_text(each) for each in value):
            return ("\n".join(encodable(each["text"]) for each in value),)
    raise PydanticCustomError(
        "input", "it should be a string, a list of strings or a list of parts of the type 'text', and not empty"
    )


def _is_text(part: Mapping[str, object]) -> bool:
    return part.keys() == {"type", "text"} and isinstance(part["text"], str)


class TextPart(Body):
    """One of the parts of a text."""

    type: Literal["text"]
    text: Text


_Input = (
    Text
    | Annotated[list[Text], Field(min_length=1, max_length=MAX_TEXTS)]
    | Annotated[list[TextPart], Field(min_length=1)]
)


class ModerationRequest(Body):
    """Texts to judge. `model` may be left out, as in OpenAI's; it names the model whose guards judge."""

    input: Annotated[
        tuple[Text, ...],
        Field(fail_fast=True, max_length=MAX_TEXTS),
        BeforeValidator(_inputs, json_schema_input_type=_Input),
    ]
    model: Text | None = None


class SidePolicy(Body):
    """What is done with a side of a conversation that is flagged."""

    mode: Literal["score", "block"]

    @model_validator(mode="after")
    def _blocks(self) -> Self:
        if self.mode == "score":
            raise refused_option("mode", "'{field}': no request can let pass what a guard withholds; send \"block\".")
        return self


class ModerationPolicy(Body):
    """Both sides are guarded, whatever is said here."""

    input: SidePolicy | None = None
    output: SidePolicy | None = None


class Moderated(Body):
    """A request's `moderation`: its answer says what the guards made of both sides. `model` is the one served."""

    model: NonEmptyText
    policy: ModerationPolicy | None = None


def category_of(skill: str) -> str:
    """A skill's name among OpenAI's categories."""
    return f"skill/{skill}"


def result(found: Iterable[Judged], *, for_operator: bool) -> dict[str, Any]:
    """A moderation object: what detectors say of one text."""
    by_category: dict[str, list[Judged]] = {}
    for each in found:
        if each.guard.kind is GuardKind.DETECTOR:
            by_category.setdefault(category_of(each.guard.skill), []).append(each)
    told = {category: _told(of, for_operator) for category, of in by_category.items()}
    return _shown(
        {category: any(each.verdict is Verdict.ABSTAIN for each in of) for category, of in by_category.items()},
        {category: number for category, (number, _) in told.items()},
        {category: kind for category, (_, kind) in told.items()},
    )


def _told(found: Sequence[Judged], for_operator: bool) -> tuple[float, ScoreKind]:
    """The number of one category, and what it is."""
    if not for_operator:
        return float(any(each.verdict is Verdict.ABSTAIN for each in found)), ScoreKind.VERDICT
    places = [each.guard.place_of(each.score) for each in found]
    calibrated = [1 - (low + high) / 2 for low, high in filter(None, places)]
    if len(calibrated) == len(places):
        return max(calibrated), ScoreKind.QUANTILE
    return max(nearness(each.score) for each in found), ScoreKind.THRESHOLD


@dataclass(frozen=True)
class BothSides:
    """What the guards made of a conversation and its answers, in OpenAI's shape of a chat's `moderation`."""

    model: str
    guards: tuple[GuardInfo, ...]
    policy: Policy
    for_operator: bool

    def told(self, finishes: Sequence[Finish]) -> dict[str, Any]:
        """The conversation once, and each answer. Of the scores of an answer's tokens none is kept: only what fired."""
        asked = result(judged(self.guards, finishes[0].prompt_scores, self.policy), for_operator=self.for_operator)
        return {"input": self._side([asked]), "output": self._side([self._answer(finish) for finish in finishes])}

    def _answer(self, finish: Finish) -> dict[str, Any]:
        flagged = {category_of(guard.skill): False for guard in self.guards if guard.kind is GuardKind.DETECTOR}
        for hit in finish.hits:
            if hit.mode is GuardMode.ENFORCE and hit.score.stage is Stage.GENERATION:
                flagged[category_of(hit.score.skill)] = True
        scores = {category: float(fires) for category, fires in flagged.items()}
        return _shown(flagged, scores, dict.fromkeys(flagged, ScoreKind.VERDICT))

    def _side(self, results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        listed = [{"type": "moderation_result", "model": self.model, **each} for each in results]
        return {"type": "moderation_results", "model": self.model, "results": listed}


def nearness(score: GuardScore) -> float:
    """tau / (tau + score), from the part that is nearest to firing, or furthest beyond. Every tau is above 0."""
    assert score.tau is not None, "a detector has a tau"
    return score.tau / (score.tau + max(0.0, score.score))


def _shown(flagged: Mapping[str, bool], scores: Mapping[str, float], kinds: Mapping[str, ScoreKind]) -> dict[str, Any]:
    return {
        "flagged": any(flagged.values()),
        "categories": dict(flagged),
        "category_scores": dict(scores),
        "category_applied_input_types": {category: ["text"] for category in flagged},
        "category_score_kinds": {category: kind.value for category, kind in kinds.items()},
    }
