"""A scripted engine of which one guard reads cooking in texts that say "cook", and nothing in others."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from guards.core.verdict import GuardMode, Reading
from server.engines.base import GuardInfo
from server.engines.events import Event, Finish, FinishReason
from server.engines.scripted.engine import ScriptedEngine
from server.engines.scripted.scripts import Script, Step, abstention, answer, guard, hit, score

COOKING = guard("c", skill="cooking")
PYTHON = guard("p", skill="python")


def cook(
    guards: tuple[GuardInfo, ...] = (COOKING, PYTHON),
    mode: GuardMode = GuardMode.ENFORCE,
    max_model_tokens: int = 4096,
    gate: asyncio.Event | None = None,
) -> ScriptedEngine:
    """`mode` is COOKING's. Of texts that say "break" or "silent" a guard gives no reading, and the engine says so of
    the former only. Every text waits for the gate.
    """
    found = hit(COOKING, mode=mode)

    def scored(events: Sequence[Event], inside: GuardInfo | None = None, missing: int = 0) -> tuple[Step, ...]:
        scores = tuple(
            score(of, Reading.INSIDE if inside and of.name == inside.name else Reading.OUTSIDE) for of in guards
        )[missing:]
        steps = [replace(each, prompt_scores=scores) if isinstance(each, Finish) else each for each in events]
        return (*([gate] if gate else []), *steps)

    broken = Finish(FinishReason.ERROR, prompt_tokens=0, completion_tokens=0, verified=False, error="no reading")
    fires = abstention(found) if mode is GuardMode.ENFORCE else answer("a", hits=(found,))
    return ScriptedEngine(
        (
            Script(scored([broken], missing=1), when=lambda text: "break" in text),
            Script(scored(answer("a"), missing=1), when=lambda text: "silent" in text),
            Script(scored(fires, inside=COOKING), when=lambda text: "cook" in text),
            Script(scored(answer("a"))),
        ),
        guards,
        max_model_tokens=max_model_tokens,
    )


def read(engine: ScriptedEngine) -> list[str]:
    """The texts that it judged."""
    return [bytes(request.prompt_token_ids).decode() for request in engine.submitted]
