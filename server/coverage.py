"""Which prompts a detector was not calibrated for: said at start, because nothing else would tell."""

from guards.core.verdict import GuardKind
from guards.model.encoding import BARE_FRAME, CHAT_FRAME
from server.engines.base import EngineInfo, GuardInfo


def uncovered(info: EngineInfo) -> list[str]:
    """One sentence per guard and endpoint whose prompt frames the guard does not cover. Interventions need none."""
    sentences = []
    for guard in info.guards:
        if guard.kind is not GuardKind.DETECTOR:
            continue
        if trouble := _chat(guard, info.template_sha256):
            sentences.append(f"guard {guard.name} does not cover /v1/chat/completions: {trouble}")
        texts = [frame for frame in guard.frames if frame != CHAT_FRAME]
        if not texts:
            sentences.append(f"guard {guard.name} does not cover /v1/completions: it was fitted in the chat frame only")
        elif texts != [BARE_FRAME]:
            shown = ", ".join("bare text" if frame == BARE_FRAME else repr(frame) for frame in texts)
            sentences.append(f"guard {guard.name} covers /v1/completions only for prompts of the form {shown}")
    return sentences


def _chat(guard: GuardInfo, template_sha256: str | None) -> str | None:
    """Why the chat endpoint is not covered, None where it is (or where the model has no chat template)."""
    if template_sha256 is None:
        return None
    if CHAT_FRAME not in guard.frames:
        return "it was not fitted in the chat frame"
    if guard.template_sha256 != template_sha256:
        return "it was fitted with another chat template"
    return None
