"""What a caller gets in place of a withheld answer.

    style            HTTP   finish_reason    text                         usage
    content_filter   200    content_filter   the operator's text          as really spent
    refusal          200    stop             the operator's text          as really spent
    error            400    none: code skill_abstained, whole response    not shown

Of a chat message the operator's text is `content`, or under `refusal` its `refusal`, with `content` null: never both,
since clients show one behind the other. Of a completion it is `text`, behind the prompt where that is echoed. An
abstained choice carries no logprobs (`prompts.py` says what stands there for an echoed prompt) and nothing that the
model wrote, except what a stream had already sent. With several answers each has its own outcome, only
under `error` the first abstention ends the whole request, since a status belongs to all of them.
"""

from dataclasses import dataclass

from server.auth import Caller
from server.config import AbstainStyle, ServerConfig
from server.engines.events import FinishReason, Hit, PromptHits
from server.errors import AbstainedError

_FINISH_REASONS = {
    AbstainStyle.CONTENT_FILTER: "content_filter",
    AbstainStyle.REFUSAL: "stop",
}


@dataclass(frozen=True)
class Abstention:
    """How this caller is told: the operator's style and text, and whether scores may be shown."""

    style: AbstainStyle
    text: str
    for_operator: bool

    @property
    def as_refusal(self) -> bool:
        """Whether a chat message holds the text as `refusal`."""
        return self.style is AbstainStyle.REFUSAL

    def guard(self, hit: Hit) -> dict[str, object]:
        """The `guard` object. Scores and thresholds would tell a user how far a prompt is from passing."""
        score = hit.score
        shown: dict[str, object] = {
            "action": "abstain",
            "skill": score.skill,
            "method": score.method,
            "stage": score.stage.value,
        }
        if self.for_operator:
            shown |= {
                "guard": score.guard,
                "score": score.score,
                "tau": score.tau,
                "layers": list(score.layers),
                "part": score.part,
                "position": score.position,
            }
        return shown

    def withheld(self, hits: PromptHits) -> dict[str, object]:
        """The `guard` object of an answer that goes out without some log-probabilities of its prompt."""
        return {**self.guard(hits.first), "action": "withhold_logprobs", "positions": hits.positions}

    def refuse_if_error_style(self, hit: Hit) -> None:
        """Raises AbstainedError where the style is `error`."""
        if self.style is AbstainStyle.ERROR:
            raise AbstainedError(
                f"This request needs the skill {hit.score.skill!r}, which this server withholds.", self.guard(hit)
            )

    def finish_reason(self, reason: FinishReason) -> str:
        """OpenAI's name for how an answer ended."""
        return _FINISH_REASONS[self.style] if reason is FinishReason.ABSTAIN else reason.value


def abstention_for(caller: Caller, config: ServerConfig) -> Abstention:
    """As the caller's tenant has it, and else the server."""
    policy = caller.policy
    return Abstention(
        policy.abstain_style or config.abstain_style, policy.abstain_text or config.abstain_text, caller.is_operator
    )
