"""For models that this server does not run: POST /v1/moderations and LiteLLM's generic guardrail."""

import secrets

from fastapi import APIRouter, Request

from guards.core.verdict import Verdict
from server.auth import Caller
from server.context import CallerDep, ContextDep, RequestContext, Services, ServicesDep
from server.engines.base import Hit
from server.generation import while_connected
from server.judging import Judge, Judged
from server.openai.abstention import Abstention
from server.openai.guardrail import GuardrailRequest
from server.openai.moderation import ModerationRequest, result
from server.readiness import Running
from server.routes.generation import observer_of, require_model

router = APIRouter()


@router.post("/v1/moderations")
async def moderations(
    body: ModerationRequest, request: Request, services: ServicesDep, context: ContextDep, caller: CallerDep
) -> dict[str, object]:
    """A result for each text, or one for the parts of a text together."""
    running = services.readiness.require_ready()
    require_model(body.model or None, running)
    judge = _judge(services, running, context, caller)
    found = await while_connected(request.receive, judge.texts(body.input))
    return {
        "id": f"modr-{secrets.token_hex(16)}",
        "model": running.info.model,
        "results": [result(each, for_operator=caller.is_operator) for each in found],
    }


@router.post("/beta/litellm_basic_guardrail_api")
async def litellm_guardrail(
    body: GuardrailRequest, request: Request, services: ServicesDep, context: ContextDep, caller: CallerDep
) -> dict[str, object]:
    """BLOCKED where an enforced guard fires on any of the texts, and NONE where none does on all of them."""
    running = services.readiness.require_ready()
    judge = _judge(services, running, context, caller)
    found = await while_connected(request.receive, judge.texts(body.judged))
    fired = next((each for verdicts in found for each in verdicts if each.verdict is Verdict.ABSTAIN), None)
    if fired is None:
        return {"action": "NONE"}
    config = services.config
    guard = Abstention(config.abstain_style, config.abstain_text, caller.is_operator).guard(_hit(fired, judge))
    return {"action": "BLOCKED", "blocked_reason": config.abstain_text, "guard": guard}


def _hit(fired: Judged, judge: Judge) -> Hit:
    return Hit(fired.score, judge.policy.rules[fired.guard.name].mode)


def _judge(services: Services, running: Running, context: RequestContext, caller: Caller) -> Judge:
    return Judge(
        services.engine,
        running.policy_for(caller),
        services.config.max_answers,
        lambda: observer_of(services, context, caller),
    )
