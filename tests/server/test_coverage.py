"""What is said at the start of prompts that a guard was not calibrated for."""

from dataclasses import replace

from guards.core.verdict import GuardKind
from server.coverage import accepted, uncovered
from server.engines.base import EngineInfo, GuardInfo, TemplateState
from server.engines.scripted.engine import ScriptedEngine
from server.engines.scripted.scripts import guard


def info(*guards: GuardInfo, template_sha256: str | None = "0" * 64) -> EngineInfo:
    return replace(ScriptedEngine(guards=guards).info, template_sha256=template_sha256)


def test_frames_that_are_missing_are_named() -> None:
    chat, text = guard("chat"), replace(guard("text"), frames=("bare",))
    both = replace(guard("both"), frames=("chat", "bare"))
    assert uncovered(info(chat, text, both)) == [
        "guard chat does not cover /v1/completions: it was fitted in the chat frame only",
        "guard text does not cover /v1/chat/completions: it was not fitted in the chat frame",
    ]
    assert uncovered(info(text, template_sha256=None)) == [], "the model has no chat"
    assert uncovered(info(guard(kind=GuardKind.INTERVENTION))) == []


def test_the_form_of_completions_is_said() -> None:
    asked = replace(guard(), frames=("chat", "Q: {text}", "bare"))
    assert uncovered(info(asked)) == [
        "guard demo covers /v1/completions only for prompts of the form 'Q: {text}', bare text"
    ]


def test_an_accepted_template_is_said_of_every_kind_of_guard() -> None:
    taken = [
        replace(guard(kind.value, kind=kind), template=TemplateState.ACCEPTED, template_difference="got 1, wanted 2")
        for kind in GuardKind
    ]
    says = "was calibrated with another chat template or tokenizer, taken by --accept-template: got 1, wanted 2"
    assert accepted(info(*taken)) == [f"guard detector {says}", f"guard intervention {says}"]
    others = set(TemplateState) - {TemplateState.ACCEPTED}
    assert accepted(info(*(replace(guard(), template=state) for state in others))) == []
