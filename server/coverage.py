"""Which prompts a guard was not calibrated for: said at start, because nothing else would tell."""

from guards.core.verdict import GuardKind
from guards.model.frames import BARE_FRAME, CHAT_FRAME
from server.engines.base import EngineInfo, TemplateState


def accepted(info: EngineInfo) -> list[str]:
    """One sentence per guard that serves with another chat template or tokenizer, because the operator took it."""
    return [
        f"guard {guard.name} was calibrated with another chat template or tokenizer, taken by --accept-template: "
        f"{guard.template_difference}"
        for guard in info.guards
        if guard.template is TemplateState.ACCEPTED
    ]


def uncovered(info: EngineInfo) -> list[str]:
    """One sentence per guard and endpoint whose prompt frames the guard does not cover. Interventions need none."""
    sentences = []
    for guard in info.guards:
        if guard.kind is not GuardKind.DETECTOR:
            continue
        if info.template_sha256 is not None and CHAT_FRAME not in guard.frames:
            sentences.append(
                f"guard {guard.name} does not cover /v1/chat/completions: it was not fitted in the chat frame"
            )
        texts = [frame for frame in guard.frames if frame != CHAT_FRAME]
        if not texts:
            sentences.append(f"guard {guard.name} does not cover /v1/completions: it was fitted in the chat frame only")
        elif texts != [BARE_FRAME]:
            shown = ", ".join("bare text" if frame == BARE_FRAME else repr(frame) for frame in texts)
            sentences.append(f"guard {guard.name} covers /v1/completions only for prompts of the form {shown}")
    return sentences
