"""For models that this server does not run: POST /v1/moderations and LiteLLM's generic guardrail."""

import secrets
from collections.abc import Sequence

from fastapi import APIRouter, Request

from guards.core.verdict import GuardMode
from server.auth import Caller
from server.context import CallerDep, ContextDep, RequestContext, Services, ServicesDep
from server.engines.events import Event, Hit
from server.engines.request import EngineRequest
from server.generation import Observer, while_connected
from server.judging import Judge, Judged, hits_of
from server.openai.abstention import abstention_for
from server.openai.guardrail import GuardrailRequest
from server.openai.moderation import ModerationRequest, result
from server.readiness import Running
from server.routes.generation import measuring, require_model
from server.routes.posted import PostedRoute

router = APIRouter(route_class=PostedRoute)


@router.post("/v1/moderations")
async def moderations(
    body: ModerationRequest, request: Request, services: ServicesDep, context: ContextDep, caller: CallerDep
) -> dict[str, object]:
    """A result for each text, or one for the parts of a text together."""
    running = services.readiness.require_ready()
    require_model(body.model or None, running)
    found, _ = await _judged(body.input, request, services, running, context, caller)
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
    _, hits = await _judged(body.judged, request, services, running, context, caller)
    fired = next((hit for hit in hits if hit.mode is GuardMode.ENFORCE), None)
    if fired is None:
        return {"action": "NONE"}
    abstention = abstention_for(caller, services.config)
    return {"action": "BLOCKED", "blocked_reason": abstention.text, "guard": abstention.guard(fired)}


async def _judged(
    texts: Sequence[str],
    request: Request,
    services: Services,
    running: Running,
    context: RequestContext,
    caller: Caller,
) -> tuple[list[tuple[Judged, ...]], list[Hit]]:
    """The verdicts on each text, and what fired, which is recorded. Raises AuditError where it cannot be."""

    def observer(of: EngineRequest) -> Observer:
        measure = measuring(services, context, of, None)

        async def observe(event: Event) -> None:
            measure(event)
            services.readiness.require_agreement()

        return observe

    policy = running.policy_for(caller)
    most, tenant = services.config.max_answers, caller.tenant
    judge = Judge(services.engine, services.encoder, policy, most, observer, context.spend, tenant)
    found = await while_connected(request.receive, judge.texts(texts))
    places: dict[str, list[int]] = {}
    for at, text in enumerate(texts):
        places.setdefault(text, []).append(at)
    hits = [(hit, at) for at in places.values() for hit in hits_of(found[at[0]], policy)]
    await services.audit.checked(context.asked, policy, hits)
    return found, [hit for hit, _ in hits]
