"""POST /v1/checks: every guard's verdict on a prompt, by one forward pass and without an answer."""

import asyncio
import math
import secrets

from fastapi import APIRouter, Request

from guards.core.policy import Rule
from guards.core.verdict import GuardKind, Reading, Verdict, decide
from server.context import CallerDep, ContextDep, ServicesDep
from server.engines.base import GuardInfo, GuardScore, Hit
from server.errors import UnverifiedError
from server.generation import while_connected
from server.openai import CheckRequest
from server.openai.history import log_dropped, require_shown
from server.routes.generation import require_model

router = APIRouter()


@router.post("/v1/checks")
async def checks(
    body: CheckRequest, request: Request, services: ServicesDep, context: ContextDep, caller: CallerDep
) -> dict[str, object]:
    """The caller's own verdicts for everybody; scores, thresholds and places for operators."""
    running = services.readiness.require_ready()
    require_model(body.model or None, running)
    engine = services.engine
    if body.messages is not None:
        log_dropped(body.messages, context.request_id)
        require_shown(body.messages, running.info)
        said = [message.to_engine() for message in body.messages]
        prompt = await asyncio.to_thread(engine.encode_chat, said, (), body.chat_template_kwargs or {})
    elif isinstance(body.prompt, str):
        prompt = await asyncio.to_thread(engine.encode_text, body.prompt)
    else:
        assert body.prompt is not None, "the protocol model holds one of the two"
        prompt = body.prompt
    context.spend(len(prompt))
    policy = running.policy_for(caller)
    scores = await while_connected(request.receive, engine.check(prompt, f"check-{secrets.token_hex(16)}", policy))
    by_guard, rules = {score.guard: score for score in scores}, policy.rules
    rows, hits = [], []
    for guard in running.info.guards:
        score = by_guard.get(guard.name)
        verdict = verdict_of(guard, score, rules[guard.name])
        assert score is not None, "a verdict needs a score"
        rows.append(_row(score, verdict, caller.is_operator))
        if verdict is not Verdict.ALLOW:
            hits.append(Hit(score, rules[guard.name].mode))
    await services.audit.checked(context.asked, policy, hits)
    return {
        "object": "list",
        "model": running.info.model,
        "prompt_tokens": len(prompt),
        "data": rows,
    }


def verdict_of(guard: GuardInfo, score: GuardScore | None, rule: Rule) -> Verdict:
    """What a generating request with this prompt would meet. Raises UnverifiedError without a finite reading.

    An intervention changes activations and never abstains, so a valid reading of one is no verdict against the prompt.
    """
    reading = Reading.MISSING if score is None else score.reading
    if score is not None and not math.isfinite(score.score):
        reading = Reading.INVALID
    judged = guard.kind is GuardKind.DETECTOR and score is not None and score.stage.within(rule.scope)
    verdict = decide(reading, rule.mode, judged)
    if verdict is Verdict.ERROR:
        raise UnverifiedError(f"guard {guard.name}: its reading of the prompt is {reading.name.lower()}")
    return verdict


def _row(score: GuardScore, verdict: Verdict, for_operator: bool) -> dict[str, object]:
    row: dict[str, object] = {
        "guard": score.guard,
        "skill": score.skill,
        "method": score.method,
        "verdict": verdict.value,
    }
    if for_operator:
        row |= {"score": score.score, "tau": score.tau, "layers": list(score.layers), "part": score.part}
    return row
